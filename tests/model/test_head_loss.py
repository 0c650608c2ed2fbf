"""The language head's loss: its value and gradients are cross-entropy's, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from embervlm.model import head_loss as module
from embervlm.model.head_loss import head_loss

PLACES, WIDTH, VOCABULARY = 23, 12, 301


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several stretches, the last of each shorter."""
    monkeypatch.setattr(module, "CHUNK", 9)
    monkeypatch.setattr(module, "ROWS", 4)


def drawn(places: int = PLACES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(places, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    return states, weight, torch.randint(0, VOCABULARY, (places,), generator=generator)


@pytest.mark.parametrize("outer", [1.0, 0.25])
def test_it_is_cross_entropy(small_chunks: None, outer: float) -> None:
    states, weight, targets = drawn()
    expected = F.cross_entropy(states @ weight.T, targets)
    gradients = torch.autograd.grad(expected * outer, (states, weight))
    loss = head_loss(states, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(loss * outer, (states, weight)), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_under_autocast_it_is_as_near_as_cross_entropy(small_chunks: None) -> None:
    states, weight, targets = drawn()
    exact = torch.autograd.grad(F.cross_entropy(states @ weight.T, targets), (states, weight))
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = F.cross_entropy(F.linear(states, weight).float(), targets), head_loss(states, weight, targets)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, found, usual, wanted in zip(
        ("states", "weight"),
        torch.autograd.grad(ours, (states, weight)),
        torch.autograd.grad(plain, (states, weight)),
        exact,
        strict=True,
    ):
        assert found.dtype == torch.float32, name
        assert float((found - wanted).norm()) <= 1.5 * float((usual - wanted).norm()), name


def test_no_place_at_all_gives_gradients_of_nothing() -> None:
    states, weight, targets = drawn(0)
    loss = head_loss(states, weight, targets)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None and weight.grad.shape == weight.shape and not weight.grad.any()


def test_without_gradients_it_is_the_same_number() -> None:
    states, weight, targets = drawn()
    loss = head_loss(states, weight, targets)
    with torch.no_grad():
        assert torch.equal(head_loss(states, weight, targets), loss)


def test_its_gradients_are_given_once() -> None:
    loss = head_loss(*drawn())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given once"):
        loss.backward()
