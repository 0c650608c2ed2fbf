"""The plug-in for lmms-eval: with the harness's own base class and registry where it is installed, else with a stand-in
that has the interface it documents."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from embervlm.prompts import chat_pieces, encode

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Image.linear_gradient("L").convert("RGB")


class _Base:
    """As ``lmms_eval.api.model.lmms`` begins."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@dataclass(frozen=True)
class _Manifest:
    model_id: str
    simple_class_path: str


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval, or a stand-in."""
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = _Base  # type: ignore[attr-defined]
        registry = ModuleType("lmms_eval.models.registry_v2")
        registry.ModelManifest = _Manifest  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, registry.__name__, registry)
    yield
    sys.modules.pop("embervlm.harness.model", None)


@pytest.fixture
def model(harness: None, tiny_folder: Path) -> Any:
    """The class that the entry point names, as the harness makes it."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = group["embervlm"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest.model_id == "embervlm"
    module, _, name = manifest.simple_class_path.rpartition(".")
    made = getattr(importlib.import_module(module), name)(
        pretrained=str(tiny_folder), batch_size="1", max_batch_size=None
    )
    made.task_dict["task"] = {"test": [{"pictures": [PICTURE]}, {"pictures": []}, {"pictures": [PICTURE, PICTURE]}]}
    return made


def request(context: str, wanted: Any, document: int = 0) -> Any:
    return SimpleNamespace(args=(context, wanted, lambda found: found["pictures"], document, "task", "test"))


def test_answers_are_those_of_the_model_to_prompts_as_in_training(model: Any, caplog: Any) -> None:
    wanted = {"max_new_tokens": 6, "temperature": 0, "until": []}
    with caplog.at_level(logging.WARNING):
        answers = model.generate_until([request("What is it?", dict(wanted), document) for document in (0, 1, 2)])
    processor = model.processor
    for answer, has_picture in zip(answers, (True, False, True), strict=True):
        pieces = chat_pieces([("What is it?", None)], has_picture)
        ids = torch.tensor([encode(pieces, processor.tokenizer, processor.image_tokens).input_ids])
        pixels = torch.from_numpy(processor.image_processor.pixels(PICTURE))[None] if has_picture else None
        written = model.model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=6, do_sample=False)
        assert answer == processor.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answers[0] == answers[2] != answers[1]
    assert "asks about 2 pictures; embervlm looks at the first (said once)" in caplog.text
    (whole,) = model.generate_until([request("What is it?", dict(wanted))])
    stop = whole[len(whole) // 2]
    assert model.generate_until([request("What is it?", wanted | {"until": stop})]) == [whole.partition(stop)[0]]


def test_a_continuation_is_scored_by_its_mean_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ((loss, is_greedy),) = model.loglikelihood([request("What is it?", lambda found: "zebra crossing")])
    processor = model.processor
    prompt = encode(chat_pieces([("What is it?", None)], True), processor.tokenizer, processor.image_tokens).input_ids
    answer = processor.tokenizer(" zebra crossing")["input_ids"]
    pixels = torch.from_numpy(processor.image_processor.pixels(PICTURE))[None]
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([prompt + answer]), pixel_values=pixels).logits[0].log_softmax(-1)
    expected = -sum(logits[len(prompt) - 1 + place, token] for place, token in enumerate(answer)) / len(answer)
    assert loss == pytest.approx(float(expected), rel=1e-4) and not is_greedy

    def knows_the_next(input_ids: torch.Tensor, **others: Any) -> Any:
        return SimpleNamespace(logits=50 * torch.nn.functional.one_hot(input_ids.roll(-1), 50262))

    monkeypatch.setattr(model, "_model", knows_the_next)
    ((loss, is_greedy),) = model.loglikelihood([request("What is it?", " zebra crossing")])
    assert loss == pytest.approx(0, abs=1e-6) and is_greedy


def test_long_questions_keep_their_end_and_what_cannot_be_is_said(model: Any, one_line: Any) -> None:
    (answer,) = model.generate_until([request("word " * 3000 + "What is it?", {"max_new_tokens": 3})])
    assert isinstance(answer, str)
    prompt = model._prompt("word " * 3000 + "What is it?", True, 500)
    assert prompt.shape[1] <= 500 and "What is it?\nAssistant:" in model.processor.tokenizer.decode(prompt[0])
    with pytest.raises(ValueError, match="max_new_tokens 5000: the model has 512 positions in all") as error:
        model.generate_until([request("What?", {"max_new_tokens": 5000})])
    one_line(error.value)
    with pytest.raises(ValueError, match="asks about str; embervlm looks at pictures only"):
        model._picture(["video.mp4"], "task")
    with pytest.raises(NotImplementedError, match="choose tasks of one round"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="--model_args dtype: not known; there are: pretrained, device, batch_size"):
        type(model)(pretrained="spark", dtype="float16")
