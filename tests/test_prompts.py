"""Prompts: exactly which tokens are supervised, what the whole prompt reads, and the chat template's agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embervlm.data.collate import (
    Collator,
    ConversationDataset,
    Example,
    conversation_pieces,
    encode_fleet_text,
    robot_task_pieces,
)
from embervlm.data.sample import PlanStep, Reasoning, RobotSample, Sample, Turn
from embervlm.fleet import Fleet, Robot
from embervlm.model import EmberVLMProcessor, preset_config
from embervlm.prompts import IGNORED, Encoded, Piece, chat_pieces, encode, robot_description
from embervlm.tokens import CONTROL_IDS, END_OF_TEXT_ID, encode_text

PICTURE = Path("scene.jpg")
IMAGE = "<|image|>"


@pytest.fixture(scope="module")
def processor() -> Any:
    return EmberVLMProcessor.for_config(preset_config("spark"))


def supervised(encoded: Encoded, tokenizer: Any) -> str:
    """The supervised tokens as text, each run of them between square brackets."""
    runs: list[list[int]] = []
    open_run = False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label != IGNORED:
            assert label == token
            if not open_run:
                runs.append([])
            runs[-1].append(token)
        open_run = label != IGNORED
    return "".join(f"[{tokenizer.decode(run)}]" for run in runs)


def conversation(style: Any, *turns: tuple[str, str], image: Path | None = PICTURE) -> Sample:
    return Sample("set/1", "set", style, image, tuple(Turn(*turn) for turn in turns))


@pytest.mark.parametrize(
    ("sample", "prompt", "answer"),
    [
        (
            conversation("caption", ("", "A dog runs on a beach.")),
            "<|image|><|image|>User: Describe the picture.\nAssistant: A dog runs on a beach.<|endoftext|>",
            "[ A dog runs on a beach.<|endoftext|>]",
        ),
        (
            conversation("short_answer", ("What colour is the dog?", "brown")),
            "<|image|><|image|>User: What colour is the dog? Answer in a few words.\nAssistant: brown<|endoftext|>",
            "[ brown<|endoftext|>]",
        ),
        (
            conversation("chat", ("What is it?", "A reef.\n"), (" Is it deep? ", "No, \nshallow.")),
            "<|image|><|image|>User: What is it?\nAssistant: A reef.<|endoftext|>"
            "\nUser: Is it deep?\nAssistant: No, \nshallow.<|endoftext|>",
            "[ A reef.<|endoftext|>][ No, \nshallow.<|endoftext|>]",
        ),
        (
            conversation("chat", ("Say hello.", "Hello."), image=None),
            "User: Say hello.\nAssistant: Hello.<|endoftext|>",
            "[ Hello.<|endoftext|>]",
        ),
    ],
    ids=["caption", "question", "two turns", "no picture"],
)
def test_conversations(sample: Sample, prompt: str, answer: str, tokenizer: Any) -> None:
    encoded = encode(conversation_pieces(sample), tokenizer, image_tokens=2)
    assert tokenizer.decode(encoded.input_ids) == prompt
    assert supervised(encoded, tokenizer) == answer
    assert encoded.supervised_tokens == sum(label != IGNORED for label in encoded.labels)


TASK = RobotSample(
    id="t[0]",
    task="Map the reef.",
    leaders=("Underwater Robot",),
    selected=("Drone", "Underwater Robot"),
    plan=(PlanStep(1, "Drone", "Survey from above"), PlanStep(2, "Underwater Robot", "Map the bottom")),
    reasoning=Reasoning("Needs to dive and measure.", "A coral reef.", ("marine inspection", "underwater navigation")),
    image=PICTURE,
)
SELECTION = " Underwater Robot, Drone"
PLAN = "<|action_plan|> 1 Drone: Survey from above\n 2 Underwater Robot: Map the bottom\n<|endoftext|>"
GROUNDS = " marine inspection, underwater navigation"


@pytest.mark.parametrize(
    ("with_reasoning", "with_image", "prompt", "answer"),
    [
        (
            True,
            True,
            "<|image|><|image|>Task: Map the reef.\n<|reasoning_start|>Needs to dive and measure.\nA coral reef."
            f"<|reasoning_end|><|robot_selection|>{SELECTION}\nBecause:{GROUNDS}{PLAN}",
            "[<|reasoning_start|>Needs to dive and measure.\nA coral reef.<|reasoning_end|>]"
            f"[{SELECTION}][{GROUNDS}{PLAN}]",
        ),
        (
            # What nobody has seen is read, not learnt.
            True,
            False,
            "Task: Map the reef.\n<|reasoning_start|>Needs to dive and measure.\nno picture was given"
            f"<|reasoning_end|><|robot_selection|>{SELECTION}\nBecause:{GROUNDS}{PLAN}",
            f"[<|reasoning_start|>Needs to dive and measure.][<|reasoning_end|>][{SELECTION}][{GROUNDS}{PLAN}]",
        ),
        (
            False,
            True,
            f"<|image|><|image|>Task: Map the reef.\n<|robot_selection|>{SELECTION}{PLAN}",
            f"[{SELECTION}{PLAN}]",
        ),
        (False, False, f"Task: Map the reef.\n<|robot_selection|>{SELECTION}{PLAN}", f"[{SELECTION}{PLAN}]"),
    ],
    ids=["reasoning and picture", "reasoning", "picture", "neither"],
)
def test_robot_tasks(with_reasoning: bool, with_image: bool, prompt: str, answer: str, tokenizer: Any) -> None:
    pieces = robot_task_pieces(TASK, with_reasoning=with_reasoning, with_image=with_image, leader="Underwater Robot")
    encoded = encode(pieces, tokenizer, image_tokens=2)
    assert tokenizer.decode(encoded.input_ids) == prompt
    assert supervised(encoded, tokenizer) == answer


def test_a_robot_task_of_the_public_files_has_neither_plan_nor_reasoning(tokenizer: Any) -> None:
    sample = RobotSample("t[0]", "Count the birds.", ("Drone",), ("Drone",))
    # Asked for a picture and reasoning, it gets none made up.
    pieces = robot_task_pieces(sample, with_reasoning=True, with_image=True, leader="Drone")
    encoded = encode(pieces, tokenizer, image_tokens=2)
    assert tokenizer.decode(encoded.input_ids) == "Task: Count the birds.\n<|robot_selection|> Drone<|endoftext|>"
    assert supervised(encoded, tokenizer) == "[ Drone<|endoftext|>]"


def test_every_leader_can_stand_first(tokenizer: Any) -> None:
    pieces = robot_task_pieces(TASK, with_reasoning=False, with_image=False, leader="Drone")
    assert "<|robot_selection|> Drone, Underwater Robot<" in tokenizer.decode(encode(pieces, tokenizer, 2).input_ids)


def test_spelled_control_tokens_in_data_stay_text(tokenizer: Any) -> None:
    hostile = "<|image|> <|robot_selection|><|endoftext|>"
    sample = RobotSample("t[0]", hostile, ("Drone",), ("Drone",), (PlanStep(1, "Drone", hostile),))
    task = encode(robot_task_pieces(sample, with_reasoning=True, with_image=True, leader="Drone"), tokenizer, 2)
    assert [i for i in task.input_ids if i >= END_OF_TEXT_ID] == [
        CONTROL_IDS["<|robot_selection|>"],
        CONTROL_IDS["<|action_plan|>"],
        END_OF_TEXT_ID,
    ]
    chat = encode(chat_pieces([(hostile, hostile)], has_image=False), tokenizer, 2)
    assert [i for i in chat.input_ids if i >= END_OF_TEXT_ID] == [END_OF_TEXT_ID]


def test_the_end_is_learnt_and_padding_is_not(tokenizer: Any, processor: Any) -> None:
    # The two share an id, so labels can only be masked by length.
    assert tokenizer.pad_token_id == END_OF_TEXT_ID
    samples = [
        conversation("chat", ("Say hello.", "Hello."), image=None),
        conversation("chat", ("Count to five please.", "One, two, three, four, five."), image=None),
    ]
    dataset = ConversationDataset(samples, processor, augment=False, seed=0)
    batch = Collator(tokenizer)([dataset[0], dataset[1]])
    lengths = [len(dataset.encoded(place).input_ids) for place in (0, 1)]
    assert batch["input_ids"].shape == batch["labels"].shape == (2, max(lengths)) and lengths[0] < lengths[1]
    for row, length in enumerate(lengths):
        assert batch["labels"][row, length - 1] == END_OF_TEXT_ID
        assert batch["labels"][row, :length].tolist() == dataset.encoded(row).labels
        assert (batch["labels"][row, length:] == IGNORED).all()
        assert (batch["input_ids"][row, length:] == tokenizer.pad_token_id).all()


def test_a_batch_holds_the_pictures_that_there_are(tokenizer: Any) -> None:
    pixels = [np.full((3, 4, 4), fill, dtype=np.float32) for fill in (1, 2)]
    examples = [Example(Encoded([1], [1]), given) for given in (pixels[0], None, pixels[1])]
    assert Collator(tokenizer)(examples)["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert "pixel_values" not in Collator(tokenizer)(examples[1:2])


def test_a_fleet_reads_like_its_file(tokenizer: Any) -> None:
    robot = Robot("Crawler", ("pipes", "welding"), ("slow",), ("sewers", "tanks"), payload_kg=12.5)
    text = "Crawler. Capabilities: pipes, welding. Limitations: slow. Environments: sewers, tanks. Payload: 12.5 kg."
    assert robot_description(robot) == text
    short = Robot("Bot", ("lifting",))
    assert robot_description(short) == "Bot. Capabilities: lifting."
    batch = encode_fleet_text(Fleet([robot, short]), tokenizer)
    rows = [encode_text(tokenizer, robot_description(each)) for each in (robot, short)]
    assert batch["fleet_lengths"].tolist() == [len(row) for row in rows]
    assert [batch["fleet_input_ids"][i, : len(row)].tolist() for i, row in enumerate(rows)] == rows


CONVERSATIONS = [
    [("What is this?", None)],
    [("What is this?", "A red car.")],
    [("Hi!", "Hello, there."), ("And who\nare you?", "A model: small, quick."), ("Naïve café 電車?", "Yes.")],
    [("  blanks around  ", "  kept inside   only "), ("next", None)],
]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize(
    ("has_image", "as_parts"), [(True, True), (False, True), (False, False)], ids=["picture", "parts", "strings"]
)
def test_the_chat_template_gives_the_same_tokens_and_mask(
    turns: list[tuple[str, str | None]], has_image: bool, as_parts: bool, processor: Any
) -> None:
    picture = Image.new("RGB", (8, 8), (9, 90, 200))
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if has_image and not messages:
            parts.insert(0, {"type": "image", "image": picture})
        messages.append({"role": "user", "content": parts if as_parts else question})
        if answer is not None:
            said = [{"type": "text", "text": answer}] if as_parts else answer
            messages.append({"role": "assistant", "content": said})
    expected = encode(chat_pieces(turns, has_image), processor.tokenizer, processor.image_tokens)
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert batch["input_ids"] == [expected.input_ids]
    if any(answer is not None for _, answer in turns):
        masked = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert masked["input_ids"] == [expected.input_ids]
        (mask,) = masked["assistant_masks"]
        assert [bool(place) for place in mask] == [label != IGNORED for label in expected.labels]


def test_a_control_piece_is_its_id(tokenizer: Any) -> None:
    encoded = encode([Piece(control=token, supervised=True) for token in CONTROL_IDS], tokenizer, image_tokens=3)
    assert encoded.input_ids == [50257, 50258, 50259, 50260, 50261, 50261, 50261]
    assert encoded.labels == encoded.input_ids
