"""Samples to examples: what is cut and what is not, and which captions go with a picture."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm.data.collate import Collator, ConversationDataset, Example, RobotTaskDataset, vary
from embervlm.data.sample import DataError, RobotSample, Sample, Turn
from embervlm.fleet import Fleet
from embervlm.prompts import IGNORED, Encoded
from embervlm.tokens import CONTROL_IDS, ROBOT_SELECTION, encode_text


def test_a_conversation_is_cut_and_a_robot_task_keeps_its_selection(tiny_selector: Any) -> None:
    processor = tiny_selector.processor
    positions = processor.tokenizer.model_max_length
    chat = Sample("chat/1", "llava", "chat", None, (Turn("Why?", "because " * 3000),))
    cut = ConversationDataset([chat], processor, augment=False, seed=0).encoded(0)
    assert len(cut.input_ids) == len(cut.labels) == positions and cut.supervised_tokens > 0

    task = RobotSample("robots[0]", "検" * 1800, ("Drone",), ("Drone",))
    whole = RobotTaskDataset([task], processor, Fleet.default(), augment=False, seed=0)
    assert len(whole.encoded(0).input_ids) > positions
    example = whole[0]
    assert example.selection_index is not None
    assert example.encoded.input_ids[example.selection_index] == CONTROL_IDS[ROBOT_SELECTION]


def test_what_has_nothing_to_learn_is_replaced_before_its_picture_is_opened(
    tiny_selector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The answer lies behind the last position.
    endless = Sample("chat/1", "llava", "chat", tmp_path / "unopened.jpg", (Turn("why " * 3000, "Because."),))
    short = Sample("chat/2", "llava", "chat", None, (Turn("Why?", "Because."),))
    opened: list[Any] = []
    monkeypatch.setattr("embervlm.data.collate.read_picture", opened.append)
    dataset = ConversationDataset([endless, short], tiny_selector.processor, augment=True, seed=0)
    example = dataset[0]
    (failure,) = example.failures
    assert (failure.sample, failure.replaced) == ("chat/1", True) and not opened
    positions = tiny_selector.processor.tokenizer.model_max_length
    assert failure.reason == f"no supervised token among its first {positions}"
    assert example.encoded == dataset[1].encoded
    # Several of them alone are no batch.
    with pytest.raises(DataError, match="a batch of 2 samples without a supervised token: there is nothing to learn"):
        Collator(tiny_selector.tokenizer)([Example(Encoded([1, 2], [IGNORED, IGNORED]), None)] * 2)


def _words(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(encode_text(tokenizer, f" {text}")))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A picture with two captions and a question that names it as another year does; one picture without captions."""
    pictures = [tmp_path / name for name in ("000000000042.jpg", "COCO_train2014_000000000042.jpg", "other.jpg")]
    for picture in pictures:
        Image.new("RGB", (8, 8)).save(picture)
    return [
        Sample("c/1", "captions", "caption", pictures[0], (Turn("", "A cat."),)),
        Sample("c/2", "captions", "caption", pictures[0], (Turn("", "One pet."),)),
        Sample("q/1", "questions", "short_answer", pictures[1], (Turn("Who?", "a cat"),)),
        Sample("q/2", "questions", "short_answer", pictures[2], (Turn("Who?", "nobody"),)),
        Sample("t/1", "texts", "chat", None, (Turn("Who?", "Nobody."),)),
    ]


def test_a_picture_s_captions_go_with_its_questions(samples: list[Sample], tiny_selector: Any) -> None:
    dataset = ConversationDataset(samples, tiny_selector.processor, augment=True, seed=0)
    captions = {_words(tiny_selector.tokenizer, text) for text in ("A cat.", "One pet.")}
    seen: list[set[tuple[int, ...]]] = [set() for _ in samples]
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for place in range(len(samples)):
            seen[place].add(dataset[place].image_words)
    assert seen == [captions, captions, captions, {()}, {()}]


def test_indexed_samples_are_asked_for_captions_and_not_gone_through(samples: list[Sample], tiny_selector: Any) -> None:
    class Indexed(list[Sample]):
        def __iter__(self) -> Any:
            raise AssertionError("an index is not gone through")

        def captions(self, index: int) -> list[str]:
            return [f"Caption of {index}."]

    dataset = ConversationDataset(Indexed(samples), tiny_selector.processor, augment=True, seed=0)
    words = [dataset[place].image_words for place in range(len(samples))]
    assert words == [*(_words(tiny_selector.tokenizer, f"Caption of {n}.") for n in range(4)), ()]


def test_a_picture_is_varied_the_same_way_for_the_same_numbers_and_never_beyond_its_frame() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    varied = [vary(picture, random.Random(seed), 100) for seed in range(40)]
    assert [vary(picture, random.Random(seed), 100).tobytes() for seed in range(40)] == [v.tobytes() for v in varied]
    assert len({v.tobytes() for v in varied}) == 40
    assert np.array_equal(np.asarray(picture), noise)
    assert {v.mode for v in varied} == {"RGB"}
    assert all(60 <= v.width <= 100 and 60 <= v.height <= 90 for v in varied)


def test_varied_light_keeps_which_colour_is_strongest() -> None:
    for place in range(3):
        colour = [50, 50, 50]
        colour[place] = 150
        picture = Image.new("RGB", (40, 30), tuple(colour))
        for seed in range(60):
            mean = np.asarray(vary(picture, random.Random(seed), 100), np.float64).mean((0, 1))
            assert mean.argmax() == place


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 1), (3000, 2)])
def test_the_oddest_shapes_are_varied_too(size: tuple[int, int]) -> None:
    for seed in range(60):
        varied = vary(Image.new("RGB", size, (200, 100, 50)), random.Random(seed), 168)
        assert 1 <= varied.width <= min(size[0], 168) and 1 <= varied.height <= min(size[1], 168)
