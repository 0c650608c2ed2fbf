"""Weights and model folders: starting without a hub, complete folders or none, and what is damaged is noticed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from embervlm import folders
from embervlm.fleet import Fleet, Robot
from embervlm.folders import MANIFEST, WeightsError, complete_folder, is_complete, load_fleet, verify_folder
from embervlm.model import EmberVLMProcessor
from embervlm.model.repvit import RepViT
from embervlm.model.weights import load_model, load_processor, load_source_tokenizer, save_folder, starting_model
from embervlm.preflight import align_embeddings, embedding_rows
from embervlm.tokens import load_tokenizer


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The messages of embervlm.model.weights, whether or not the command line has set logging up."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("embervlm.model.weights"), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, make_gpt2_tokenizer: Callable[..., Any]) -> Path:
    """A plain folder of a small GPT-2 model, as transformers' own save_pretrained writes it: 50,257 rows."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=256)).save_pretrained(folder)
    make_gpt2_tokenizer().save_pretrained(folder)
    return folder


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_starting_from_nothing_is_said_in_one_line(log: list[str]) -> None:
    model = starting_model("spark", None, None)
    assert log == [
        "no pretrained weights are asked for: language model and vision from nothing, vision unfrozen",
    ]
    assert not model.config.vision_pretrained and embedding_rows(model) == 50262


def test_a_hub_out_of_reach_is_said_in_one_line(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with torch.device("meta"):  # the weights themselves are not looked at
        starting_model("ember", None, None)
    assert log == [
        "language model tinyllm/30M-0.4 and vision weights timm/repvit_m0_9.dist_450e_in1k cannot be reached: "
        "language model and vision from nothing, vision unfrozen",
    ]


def test_weights_that_were_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(lambda: starting_model("spark", "nobody/nothing", "none"))
    assert message.startswith("nobody/nothing: cannot load a language model (")
    assert message.endswith(
        "Cure: a folder with a GPT-2 model, a hub name that can be reached, or --language_model none"
    )
    message = refusal(lambda: starting_model("spark", "none", str(tmp_path)))
    assert message.startswith(f"{tmp_path}: cannot load vision weights (")
    assert message.endswith("or --vision_weights none")


def test_a_language_model_is_taken_over(gpt2_folder: Path, log: list[str]) -> None:
    model = starting_model("spark", str(gpt2_folder), "none")
    source = GPT2LMHeadModel.from_pretrained(gpt2_folder).state_dict()
    own = model.language_model.state_dict()
    assert set(own) == set(source) and all(torch.equal(own[name], source[name]) for name in source)
    assert model.config.text_config.n_embd == 16 and model.projector.down.out_features == 16
    assert log == [] and not model.config.vision_pretrained


def test_a_plain_folder_of_a_language_model_loads_and_is_aligned(gpt2_folder: Path) -> None:
    model = load_model(gpt2_folder)
    assert embedding_rows(model) == 50257
    before = model.get_input_embeddings().weight.detach().clone()
    assert align_embeddings(model, load_tokenizer(), load_source_tokenizer(gpt2_folder))
    assert embedding_rows(model) == 50262
    assert torch.equal(model.get_input_embeddings().weight[:50257], before)


def test_vision_weights_are_taken_over_without_their_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = RepViT((24, 48, 96, 192), (1, 1, 4, 1))
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    file = tmp_path / "model.safetensors"
    save_file({**state, "head.head.l.weight": torch.ones(2, 2)}, file)
    for source in (file, tmp_path):
        model = starting_model("spark", "none", str(source))
        assert model.config.vision_pretrained
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.vision.state_dict().items())
    message = refusal(lambda: starting_model("ember", "none", str(file)))
    assert "not the weights of this encoder" in message and message.endswith("with --preset ember")


def test_a_language_model_of_another_kind_or_too_short_is_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    other = GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=64, hidden_size=8, num_layers=1, num_heads=1, attention_types=[[["global"], 1]])
    )
    other.save_pretrained(tmp_path / "neo")
    message = refusal(lambda: starting_model("spark", str(tmp_path / "neo"), "none"))
    assert message == f"{tmp_path / 'neo'}: a language model of type 'gpt_neo'; expected gpt2"
    short = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, n_positions=64))
    short.save_pretrained(tmp_path / "short")
    message = refusal(lambda: starting_model("spark", str(tmp_path / "short"), "none"))
    assert message == f"{tmp_path / 'short'}: 64 positions; a selection needs at least 256"


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refusal(lambda: load_model(missing)) == f"{missing}: no such model folder"
    assert "no readable config.json, so not a model folder (" in refusal(lambda: load_model(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "no readable config.json, so not a model folder (" in refusal(lambda: load_model(tmp_path))
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "no readable config.json, so not a model folder (" in refusal(lambda: load_model(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is no JSON object" in refusal(lambda: load_model(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    expected = f"{tmp_path}: a model of type 'bert'; expected embervlm, or gpt2 as the language model"
    assert refusal(lambda: load_model(tmp_path)) == expected


def test_a_complete_folder_loads(tiny_folder: Path) -> None:
    assert is_complete(tiny_folder)
    verify_folder(tiny_folder)
    listed = json.loads((tiny_folder / MANIFEST).read_text())["files"]
    present = {path.name for path in tiny_folder.iterdir()} - {MANIFEST}
    assert set(listed) == present >= {"config.json", "model.safetensors", "fleet.yaml", "tokenizer.json"}
    assert not [name for name in present if Path(name).suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert load_model(tiny_folder).config.text_config.n_embd == 16
    assert load_processor(tiny_folder).image_tokens == 4
    assert load_fleet(tiny_folder) == Fleet.default()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "fleet.yaml"])
def test_one_changed_bit_is_noticed(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    content = bytearray((folder / name).read_bytes())
    # The last letter of a text, the lowest bit of a number: what stays readable and means something else.
    content[len(content) * 3 // 4] ^= 1
    (folder / name).write_bytes(content)
    expected = f"{folder}: {name} is missing or damaged (it differs from the manifest: other content). "
    expected += "Cure: use another checkpoint, or copy the folder again"
    assert refusal(lambda: verify_folder(folder)) == expected
    assert str(folder) in refusal(lambda: load_model(folder))


def test_a_missing_or_shortened_file_is_noticed(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert "model.safetensors is missing or damaged" in refusal(lambda: load_model(folder))
    weights.unlink()
    assert "model.safetensors is missing or damaged" in refusal(lambda: load_model(folder))


def test_without_a_manifest_shortened_weights_are_still_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    (folder / MANIFEST).unlink()
    load_model(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{folder}: cannot load the weights (" in refusal(lambda: load_model(folder))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"files": 3}', '{"files": {"config.json": 3}}', '{"files": {"config.json": {}}}'],
)
def test_a_damaged_manifest_is_one_line(tiny_folder: Path, tmp_path: Path, content: str) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    (folder / MANIFEST).write_text(content)
    assert refusal(lambda: verify_folder(folder)).startswith(f"{folder}: its manifest cannot be read (")


def test_a_manifest_cannot_point_outside_its_folder(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    (tmp_path / "secret").write_text("x")
    entry = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    (folder / MANIFEST).write_text(json.dumps({"files": {"../secret": entry}}))
    assert (
        refusal(lambda: verify_folder(folder)) == f"{folder}: its manifest names a file outside the folder: '../secret'"
    )


def test_weights_of_another_shape_are_refused(tiny_folder: Path, tmp_path: Path, make_tiny: Callable[..., Any]) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["n_layer"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert "the weights do not fit the configuration (12 missing: [" in refusal(lambda: load_model(folder))
    config["text_config"]["n_layer"] = 2
    config["text_config"]["n_embd"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    assert str(folder) in refusal(lambda: load_model(folder))


def test_sizes_that_the_weights_do_not_have_cost_no_memory(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    (folder / MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    for part, name, size in (("text_config", "n_positions", 10**12), ("text_config", "vocab_size", 10**13)):
        changed = config | {part: config[part] | {name: size}}
        (folder / "config.json").write_text(json.dumps(changed))
        found = refusal(lambda: load_model(folder))
        assert (
            "do not fit the configuration (0 missing: [], 1 of another shape: [" in found and f"[{size}, 16]" in found
        )


def test_json_of_a_model_folder_is_read_within_limits(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    os.mkfifo(folder / "pipe")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("pipe")
    assert "expected a file, found something that is none" in refusal(lambda: load_model(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("[" * 100_000)
    assert "nested too deeply" in refusal(lambda: load_model(folder))
    monkeypatch.setattr(folders, "MAX_JSON_BYTES", 99_999)
    assert "config.json has more than 99,999 bytes" in refusal(lambda: load_model(folder))


def test_what_a_folder_says_of_its_processor_is_not_followed(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    hostile = {"processor_class": "AutoTokenizer", "auto_map": {"AutoProcessor": "x.Y"}, "image_tokens": 10**15}
    (folder / "processor_config.json").write_text(json.dumps(hostile))
    assert load_processor(folder).image_processor.size == {"height": 64, "width": 64}


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for interruption, raised in ((full, WeightsError), (KeyboardInterrupt(), KeyboardInterrupt)):
        with pytest.raises(raised), complete_folder(tmp_path / "out") as temporary:
            (temporary / "config.json").write_text("{}")
            raise interruption
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_earlier_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with complete_folder(folder) as temporary:
        (temporary / "notes.txt").write_text("first")
    with pytest.raises(RuntimeError), complete_folder(folder) as temporary:
        (temporary / "notes.txt").write_text("second")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify_folder(folder)
    assert (folder / "notes.txt").read_text() == "first"
    with complete_folder(folder) as temporary:
        assert not is_complete(temporary)
        (temporary / "other.txt").write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "other.txt"]


def test_what_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("half")
    with complete_folder(tmp_path / "out") as temporary:
        (temporary / "whole").write_text("whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MANIFEST, "whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_saving_keeps_fleet_and_further_files(make_tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, fleet = make_tiny(), Fleet([Robot("Crawler", ("pipes",))])
    processor = EmberVLMProcessor.for_config(model.config)
    folder = save_folder(tmp_path / "deep" / "out", model, processor, fleet, {"metrics.json": "{}\n"})
    verify_folder(folder)
    assert load_fleet(folder) == fleet and (folder / "metrics.json").read_text() == "{}\n"


def test_a_processor_with_another_tokenizer_is_refused(
    tiny_folder: Path, tmp_path: Path, make_gpt2_tokenizer: Callable[..., Any]
) -> None:
    folder = copy_of(tiny_folder, tmp_path)
    make_gpt2_tokenizer(["<|pad|>"]).save_pretrained(folder)
    assert "50258 tokens without <|reasoning_start|>" in refusal(lambda: load_processor(folder))
    assert "no readable config.json" in refusal(lambda: load_processor(tmp_path))
    assert load_source_tokenizer(tmp_path) is None
