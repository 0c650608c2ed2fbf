"""Compact model folders and the model in the package: sizes, values, damage in one line, and what its name means."""

from __future__ import annotations

import json
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embervlm import folders
from embervlm.cli import main
from embervlm.doctor import examine
from embervlm.fleet import Fleet, Robot
from embervlm.folders import WeightsError, load_fleet, model_folder, write_manifest
from embervlm.model import EmberVLMForConditionalGeneration, EmberVLMProcessor, preset_config
from embervlm.model.compact import CompactError, compacted, restored
from embervlm.model.weights import load_model, load_processor, save_compact, save_folder
from embervlm.selection import RobotSelector

#: What the package may carry.
MOST_BYTES = 15_000_000
CALIBRATION = '{"temperature": 1.5, "member_threshold": 0.25, "samples": 7}\n'
TOKENS = "language_model.transformer.wte.weight"
WORDS = "robot_head.by_words.table"
NO_MODEL = "this installation carries no trained model; name the folder of one, which embervlm train makes"


@pytest.fixture(scope="module")
def source(make_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model with everything that a trained one has."""
    model = make_tiny()
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(1e-6, 2)  # type: ignore[union-attr]
    fleet = Fleet([Robot("Crawler", ("pipes",)), Robot("Glider", ("mapping",))])
    files = {"calibration.json": CALIBRATION, "metrics.json": "{}\n", "README.md": "# A card\n"}
    folder = tmp_path_factory.mktemp("models") / "source"
    return save_folder(folder, model, EmberVLMProcessor.for_config(model.config), fleet, files)


@pytest.fixture(scope="module")
def compact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a compact folder. Tests must not change it."""
    return save_compact(tmp_path_factory.mktemp("models") / "compact", source)


@pytest.fixture
def copied(compact: Path, tmp_path: Path) -> Path:
    """A copy of the compact folder, for tests that change it."""
    return Path(shutil.copytree(compact, tmp_path / "copy"))


@pytest.fixture
def box(compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The compact folder as the model in the package."""
    monkeypatch.setattr(folders, "_BOX", tmp_path / "box")
    return Path(shutil.copytree(compact, tmp_path / "box" / "spark"))


@pytest.fixture
def no_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without a model."""
    monkeypatch.setattr(folders, "_BOX", tmp_path / "box")


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], form: str = "embervlm-compact/1"
) -> None:
    """Write other tensors into a compact folder, with a manifest that agrees."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": form})
    write_manifest(folder)


def test_the_spark_preset_fits_into_the_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EmberVLMForConditionalGeneration(preset_config("spark"))
    files = {"metrics.json": "x" * 50_000, "README.md": "x" * 20_000, "calibration.json": CALIBRATION}
    source = save_folder(tmp_path / "source", model, EmberVLMProcessor.for_config(model.config), Fleet.default(), files)
    folder = save_compact(tmp_path / "compact", source)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= MOST_BYTES
    assert load_model(folder).num_parameters() == model.num_parameters()


def test_a_compact_folder_has_what_a_model_needs_and_no_tokenizer(compact: Path) -> None:
    assert {path.name for path in compact.iterdir()} == {
        *("model.safetensors", "config.json", "compact.json", "fleet.yaml", "manifest.json"),
        *("calibration.json", "metrics.json", "README.md"),
    }
    assert json.loads((compact / "compact.json").read_text()) == {"format": "embervlm-compact", "version": 1}
    with safe_open(compact / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "embervlm-compact/1"}
        kinds = {name: file.get_slice(name).get_dtype() for name in list(file.keys())}
    tables = {f"{name}{part}": kind for name in (TOKENS, WORDS) for part, kind in ((".int8", "I8"), (".scale", "F16"))}
    assert {name: kind for name, kind in kinds.items() if name.startswith((TOKENS, WORDS))} == tables
    assert "language_model.lm_head.weight" not in kinds
    for name, kind in kinds.items():
        if name.endswith(("running_mean", "running_var")):
            assert kind == "F32"
        elif name.endswith("num_batches_tracked"):
            assert kind == "I64"
    assert kinds["projector.up.weight"] == kinds["robot_head.by_words.rarity"] == "F16"
    # Whoever uses the package may read it, not only who installed it.
    assert (compact / "model.safetensors").stat().st_mode & stat.S_IRUSR
    assert (compact / "model.safetensors").stat().st_mode == (compact / "config.json").stat().st_mode


def test_a_compact_model_is_the_model_but_for_its_rounding(source: Path, compact: Path) -> None:
    model, made = load_model(source), load_model(compact)
    assert not made.training and {p.dtype for p in made.parameters()} == {torch.float32}
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert made.config.to_diff_dict() == model.config.to_diff_dict()
    expected, found = model.state_dict(), made.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[name], tensor)
        elif name in (TOKENS, WORDS, "language_model.lm_head.weight"):
            # Half a step of a byte, the step itself rounded up to half precision.
            step = tensor.abs().amax(1, keepdim=True) / 127
            assert bool(((found[name] - tensor).abs() <= 0.501 * step).all())
        else:
            assert torch.allclose(found[name], tensor, rtol=2**-11, atol=2**-25)


def test_rounding_again_changes_nothing(compact: Path, tmp_path: Path) -> None:
    again = save_compact(tmp_path / "again", compact)
    assert (again / "model.safetensors").read_bytes() == (compact / "model.safetensors").read_bytes()
    assert save_compact(again, compact) == again  # a compact folder may be replaced


def test_values_that_half_precision_cannot_hold_are_kept() -> None:
    state = {
        "large": torch.tensor([70_000.0, 1.0]),
        "small": torch.tensor([3.3e-7, 1.1e-7]),
        "zero": torch.zeros(3),
        "count": torch.tensor(7),
        "usual": torch.tensor([0.5, -2.0]),
        TOKENS: torch.tensor([[0.0, 0.0], [1e-9, -1e-9], [5.0, -2.5], [1e-4, 3e-5]]),
        WORDS: torch.tensor([[1e9, 1.0]]),  # its scale would be infinite
    }
    stored = compacted(state)
    single = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert single == {"large", "small", WORDS} and stored["usual"].dtype == torch.float16
    made = restored(stored)
    assert list(made) == list(state)
    for name in ("large", "small", "zero", "count", "usual", WORDS):
        assert torch.equal(made[name], state[name])
    assert torch.equal(made[TOKENS][0], torch.zeros(2))
    assert torch.allclose(made[TOKENS], state[TOKENS], rtol=0.02, atol=6e-8)
    with pytest.raises(CompactError, match="usual has values that are not finite"):
        compacted({"usual": torch.tensor([float("nan")])})


def test_everything_else_comes_along(source: Path, compact: Path) -> None:
    for name in ("calibration.json", "metrics.json", "README.md"):
        assert (compact / name).read_bytes() == (source / name).read_bytes()
    assert load_fleet(compact) == load_fleet(source)
    own, usual = load_processor(compact), load_processor(source)
    assert own.image_tokens == usual.image_tokens and own.image_processor.size == usual.image_processor.size
    assert own.tokenizer.get_vocab() == usual.tokenizer.get_vocab()
    assert own.tokenizer.model_max_length == usual.tokenizer.model_max_length
    answer = RobotSelector.from_pretrained(compact).select("Look into the pipe.", reason=False)
    other = RobotSelector.from_pretrained(source).select("Look into the pipe.", reason=False)
    assert [score.robot for score in answer.robots] == [score.robot for score in other.robots]
    assert answer.confidence == pytest.approx(other.confidence, abs=0.02)


def test_one_changed_bit_is_noticed(copied: Path) -> None:
    for name in ("model.safetensors", "compact.json", "fleet.yaml"):
        content = bytearray((copied / name).read_bytes())
        content[len(content) * 3 // 4] ^= 1
        (copied / name).write_bytes(content)
        assert f"{copied}: " in refusal(lambda: load_model(copied))
        assert f"{name} is missing or damaged" in refusal(lambda: load_model(copied))
        content[len(content) * 3 // 4] ^= 1
        (copied / name).write_bytes(content)
    load_model(copied)


def test_a_compact_folder_needs_its_manifest_and_its_mark(copied: Path) -> None:
    (copied / "compact.json").rename(copied / "other.json")
    write_manifest(copied)
    expected = f"{copied}: the weights do not fit the configuration (2 missing: ["
    assert refusal(lambda: load_model(copied)).startswith(expected)
    (copied / "other.json").rename(copied / "compact.json")
    (copied / "manifest.json").unlink()
    expected = f"{copied}: a compact model without its manifest.json. Cure: copy the folder again, all of it"
    assert refusal(lambda: load_model(copied)) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("projector.up.bias"), "(1 missing: ['projector.up.bias'], 0 of another"),
        (lambda t: t.pop(f"{WORDS}.scale"), f"(1 missing: ['{WORDS}.scale'], 0 of another"),
        (lambda t: t.pop(f"{WORDS}.int8"), f"(1 missing: ['{WORDS}'], 0 of another"),
        (lambda t: t.update(more=torch.ones(1)), "1 not known: ['more'])"),
        (lambda t: t.update({WORDS: torch.ones(1024, 32)}), f"2 not known: ['{WORDS}.int8', '{WORDS}.scale'])"),
        (
            lambda t: t.update({f"{WORDS}.scale": t[f"{WORDS}.scale"][:-1].clone()}),
            f"1 of another shape or type: ['{WORDS}.scale is F16 [1023], expected F16 [1024]']",
        ),
        (
            lambda t: t.update({f"{WORDS}.scale": t[f"{WORDS}.scale"].float()}),
            f"1 of another shape or type: ['{WORDS}.scale is F32 [1024], expected F16 [1024]']",
        ),
        (
            lambda t: t.update({"projector.up.bias": torch.ones(3)}),
            "1 of another shape or type: ['projector.up.bias is F32 [3], expected F16/F32 [64]']",
        ),
        (
            lambda t: t.update({"projector.up.bias": torch.ones(64, dtype=torch.int64)}),
            "1 of another shape or type: ['projector.up.bias is I64 [64], expected F16/F32 [64]']",
        ),
        (
            lambda t: t.update({"projector.up.bias": torch.full((64,), float("nan"))}),
            "model.safetensors: projector.up.bias has values that are not finite",
        ),
        (
            lambda t: t[f"{TOKENS}.scale"].fill_(float("inf")),
            f"model.safetensors: {TOKENS}.scale has values that are not finite",
        ),
    ],
    ids=["key", "scale", "rows", "more", "both", "shape", "type", "vector", "integers", "nan", "infinite"],
)
def test_weights_that_do_not_fit_are_one_line(copied: Path, change: Callable[..., object], expected: str) -> None:
    change_weights(copied, change)
    found = refusal(lambda: load_model(copied))
    assert found.startswith(f"{copied}: ") and expected in found


def test_another_version_and_what_is_no_safetensors_file_are_one_line(copied: Path) -> None:
    change_weights(copied, lambda tensors: None, "embervlm-compact/2")
    assert refusal(lambda: load_model(copied)) == (
        f"{copied}: model.safetensors is of the format embervlm-compact/2, expected embervlm-compact/1."
        " Cure: the version of embervlm that wrote it"
    )
    for content in (b"", b"\x80\x04N.", b"\xff" * 64, (copied / "model.safetensors").read_bytes()[:-1000]):
        (copied / "model.safetensors").write_bytes(content)
        write_manifest(copied)
        assert refusal(lambda: load_model(copied)).startswith(f"{copied}: cannot read model.safetensors (")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "n_layer", 10**9),
        ("text_config", "n_layer", 3),
        ("text_config", "n_embd", 10**7),
        ("text_config", "n_embd", "wide"),
        ("text_config", "n_head", 0),
        ("text_config", "vocab_size", -1),
        ("vision_config", "depths", [10**9, 1, 1, 1]),
        ("vision_config", "widths", [8]),
        (None, "word_places", 10**12),
        (None, "text_config", []),
        (None, "vision_config", 3),
    ],
)
def test_a_configuration_of_another_model_is_one_line(copied: Path, part: str | None, key: str, value: object) -> None:
    config = json.loads((copied / "config.json").read_text())
    (config if part is None else config[part])[key] = value
    (copied / "config.json").write_text(json.dumps(config))
    write_manifest(copied)
    assert refusal(lambda: load_model(copied)).startswith(f"{copied}: ")


def test_only_our_models_with_the_packages_tokenizer_become_compact(
    source: Path, tmp_path: Path, make_gpt2_tokenizer: Callable[..., Any]
) -> None:
    (tmp_path / "there").mkdir()
    assert refusal(lambda: save_compact(tmp_path / "there", source)) == (
        f"{tmp_path / 'there'}: is there already and no compact model; expected the name of a new folder"
    )
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text('{"model_type": "gpt2"}')
    assert refusal(lambda: save_compact(tmp_path / "out", plain)) == (
        f"{plain}: a model of type 'gpt2'; only embervlm can be made compact"
    )
    other = Path(shutil.copytree(source, tmp_path / "other"))
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    entries = vocabulary["model"]["vocab"]
    entries["!"], entries["?"] = entries["?"], entries["!"]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    write_manifest(other)
    assert refusal(lambda: save_compact(tmp_path / "out", other)) == (
        f"{other}: its tokenizer is not the package's, which a compact model is read with"
    )
    assert not (tmp_path / "out").exists()


def test_names_of_models(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spark").mkdir()
    assert model_folder("spark") == box
    assert model_folder("./spark") == model_folder(Path("spark")) == Path("spark")
    (tmp_path / "outputs" / "final").mkdir(parents=True)
    assert model_folder("outputs/final") == Path("outputs/final")
    assert model_folder(Path("nobody/nothing")) == Path("nobody/nothing")
    assert refusal(lambda: RobotSelector.from_pretrained("./spark")).startswith("spark: no readable config.json")
    assert refusal(lambda: RobotSelector.from_pretrained("nobody/nothing")) == (
        "nobody/nothing: no such model folder, nor can a model of this name be had from the hub (the hub is out of"
        " reach). Cure: the folder of a trained model, or spark for the one in the package"
    )


def test_a_name_on_the_hub_is_its_download(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, allow_patterns))
        return str(box)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("somebody/spark-2") == box
    ((name, patterns),) = asked
    assert name == "somebody/spark-2" and not [each for each in patterns if each in ("*", "*.py", "*.bin", "*.pkl")]


def test_an_installation_without_a_model_says_so(
    no_box: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(lambda: RobotSelector.from_pretrained("spark")) == NO_MODEL
    for command in (["select", "--task", "Look."], ["evaluate", "--data", "robots.json"]):
        assert main(command) == 1
        assert capsys.readouterr().err == f"embervlm {command[0]}: {NO_MODEL}\n"
    (tmp_path / "spark").mkdir()
    assert "name the folder of one (the folder here is ./spark), which" in refusal(lambda: model_folder("spark"))
    (check,) = [check for check in examine() if check.name == "model in the package"]
    assert check.passed and check.found == "none; select and evaluate need --model"


def test_the_model_in_the_package_answers_offline_and_is_not_written_to(
    box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = {path.name: path.stat().st_mtime_ns for path in (box, *box.iterdir())}
    for path in (*box.iterdir(), box):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for name in ([], ["--model", "spark"]):
            assert main(["select", *name, "--task", "Look into the pipe.", "--no-reason", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["primary"] in ("Crawler", "Glider")
        assert {path.name: path.stat().st_mtime_ns for path in (box, *box.iterdir())} == before
    finally:
        box.chmod(0o755)


def test_the_doctor_looks_at_the_model_in_the_package(box: Path) -> None:
    checks = {check.name: check for check in examine(model="spark")}
    assert checks["model in the package"].passed and checks["model's fleet"].passed
    assert checks["model"].found.startswith(f"{box}: ") and checks["model"].found.endswith("agrees with its manifest")
    (box / "fleet.yaml").write_text("robots: []\n")
    checks = {check.name: check for check in examine()}
    assert not checks["model in the package"].passed and "fleet.yaml is missing or damaged" in (
        checks["model in the package"].found
    )


def test_the_export_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["export", "--format", "compact", "--model", str(source), "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert load_model(out).num_parameters() == load_model(source).num_parameters()
    capsys.readouterr()
    missing = tmp_path / "missing"
    assert main([*command[:4], str(missing), "--out", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err == f"embervlm export: {missing}: no such model folder\n"
    assert main([*command[:-1], str(source)]) == 1
    assert "expected the name of a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["export", "--format", "gguf", "--model", str(source), "--out", str(out)])
    assert leaving.value.code == 2 and "invalid choice: 'gguf' (choose from" in capsys.readouterr().err


def test_a_card_of_its_own(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, out = tmp_path / "card.md", tmp_path / "out"
    command = ["export", "--format", "compact", "--model", str(source), "--out", str(out), "--card", str(card)]
    assert main(command) == 1 and not out.exists()
    assert capsys.readouterr().err == f"embervlm export: {card}: no such file; expected the model's card\n"
    card.write_text("# Another card\n", encoding="utf-8")
    assert main(command) == 0
    assert (out / "README.md").read_text(encoding="utf-8") == "# Another card\n"
    load_model(out)  # which its manifest fits
