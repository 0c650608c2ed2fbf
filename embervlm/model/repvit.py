"""RepViT, the vision encoder: a picture becomes a small grid of features, which the projector hands on.

Architecture: Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", arXiv 2307.09283. Parameter names are
those of timm's ``repvit_m0_9``, so that its released weights load by name; the classifier heads are not built.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvNorm(nn.Module):
    """Convolution ``c`` without bias, then BatchNorm ``bn``; :meth:`fuse` gives the one convolution they amount to."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.c(x)))

    def fuse(self) -> nn.Conv2d:
        """The convolution with bias that equals this module in eval mode."""
        return fuse_conv_bn_eval(self.c.eval(), self.bn.eval())


class RepVggDepthwise(nn.Module):
    """Token mixer: 3x3 and 1x1 depthwise branches and the identity, summed and normalised; one 3x3 once fused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.conv(x) + self.conv1(x) + x))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The depthwise convolution with bias that equals this module in eval mode."""
        fused = self.conv.fuse()
        assert fused.bias is not None and self.conv1.bias is not None
        # The 1x1 branch and the identity act on the kernel's centre.
        fused.weight[:, :, 1, 1] += self.conv1.weight[:, :, 0, 0] + 1.0
        fused.bias += self.conv1.bias
        return fuse_conv_bn_eval(fused.eval(), self.bn.eval())


class SqueezeExcite(nn.Module):
    """Channel attention from the mean over the picture (Hu et al., arXiv 1709.01507), reduced to a quarter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Rounded to the nearest multiple of 8, at least 8, as the released weights are.
        reduced = max(8, int(channels * 0.25 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, reduced, kernel_size=1)
        self.fc2 = nn.Conv2d(reduced, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (batch, channels, 1, 1)
        scale = self.fc2(torch.relu(self.fc1(scale)))
        return x * torch.sigmoid(scale)


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions with GELU between them, twice as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, 2 * channels)
        self.conv2 = ConvNorm(2 * channels, channels)
        # A residual branch starts as nothing, so that a deep encoder starts as a shallow one.
        self.conv2.bn.starts_at_zero = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(nn.functional.gelu(self.conv1(x))))


class RepViTBlock(nn.Module):
    """Token mixer, channel attention where ``use_se``, and a residual channel mixer."""

    def __init__(self, channels: int, use_se: bool) -> None:
        super().__init__()
        self.token_mixer = RepVggDepthwise(channels)
        self.se = SqueezeExcite(channels) if use_se else nn.Identity()
        self.channel_mixer = ChannelMixer(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.token_mixer(x))
        return cast(Tensor, x + self.channel_mixer(x))


class Downsample(nn.Module):
    """Halves height and width and changes the number of channels between stages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pre_block = RepViTBlock(in_channels, use_se=False)
        self.spatial_downsample = ConvNorm(in_channels, in_channels, kernel_size=3, stride=2, groups=in_channels)
        self.channel_downsample = ConvNorm(in_channels, out_channels)
        self.ffn = ChannelMixer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return cast(Tensor, x + self.ffn(x))


class Stage(nn.Module):
    """One resolution: an optional downsampling, then blocks of which every second one has channel attention."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, downsample: bool) -> None:
        super().__init__()
        self.downsample = Downsample(in_channels, out_channels) if downsample else nn.Identity()
        self.blocks = nn.Sequential(*(RepViTBlock(out_channels, use_se=i % 2 == 0) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.downsample(x)))


class Stem(nn.Module):
    """Two strided convolutions: a quarter of the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels // 2, kernel_size=3, stride=2)
        self.conv2 = ConvNorm(channels // 2, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(nn.functional.gelu(self.conv1(x))))


class RepViT(nn.Module):
    """The encoder.

    Args:
        widths: channels of the four stages; ``repvit_m0_9`` has 48, 96, 192, 384.
        depths: blocks of the four stages, those of the downsampling not counted; ``repvit_m0_9`` has 2, 2, 14, 2.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(widths[0])
        self.stages = nn.Sequential(
            *(
                Stage(widths[max(i - 1, 0)], width, depth, downsample=i > 0)
                for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
            )
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of pictures: (pictures, 3, height, width) -> (pictures, width, height / 32, width / 32)."""
        # Depthwise convolutions on a CPU are faster in this layout; the result is the same.
        pixel_values = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.stages(self.stem(pixel_values)))

    @property
    def dtype(self) -> torch.dtype:
        """The format of the weights."""
        return next(self.parameters()).dtype

    def fuse(self) -> RepViT:
        """Fold every BatchNorm and re-parameterised branch into plain convolutions, in place.

        Only for weights that no longer train: the result equals the original in eval mode, and cannot be saved under
        the released names.
        """
        _fuse_children(self)
        return self

    def fused(self) -> RepViT:
        """A fused copy, in eval mode and without gradients; the encoder itself stays as it is, to be saved."""
        return copy.deepcopy(self).eval().requires_grad_(False).fuse()


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, (ConvNorm, RepVggDepthwise)):
            setattr(module, name, child.fuse())
        else:
            _fuse_children(child)
