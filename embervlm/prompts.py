"""How captions, instructions, fleets and robot selections read as text: the one place where wording is decided.

A prompt is a list of :class:`Piece`. :func:`encode` turns it into token ids and labels; what is supervised is decided
here and nowhere else. Changing any wording changes ``PROMPT_VERSION``, which is stored with every model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from embervlm.fleet import Robot
from embervlm.tokens import (
    ACTION_PLAN,
    CONTROL_IDS,
    END_OF_TEXT,
    END_OF_TEXT_ID,
    IMAGE,
    REASONING_END,
    REASONING_START,
    ROBOT_SELECTION,
    encode_text,
)

PROMPT_VERSION = 1
#: Label of a place that is not supervised, as torch's cross-entropy has it.
IGNORED = -100

CAPTION_QUESTION = "Describe the picture."
SHORT_ANSWER_HINT = "Answer in a few words."
NO_PICTURE = "no picture was given"
BECAUSE = "Because:"
#: The largest fleet of whose descriptions a prompt reads every token. Of a larger one it reads each description's last
#: token, from whose state the robot head knows the robot, so that hundreds of robots cost a prompt what a few do.
MOST_READ_WHOLE = 24

#: The Jinja form of :func:`chat_pieces`, saved with the processor; a test holds the two to the same tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if not loop.first and message['role'] == 'user' %}{{ '\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{% for part in parts %}{% if part['type'] == 'image' %}{{ '" + IMAGE + "' }}{% endif %}{% endfor %}"
    "{{ 'User: ' }}"
    "{% for part in parts %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '\nAssistant:' }}"
    "{% else %}{% generation %}"
    "{{ ' ' }}{% for part in parts %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '" + END_OF_TEXT + "' }}"
    "{% endgeneration %}{% endif %}"
    "{% endfor %}"
)


def reads_whole(robots: int) -> bool:
    """Whether prompts read every token of the descriptions of a fleet of so many robots, or the last of each."""
    return robots <= MOST_READ_WHOLE


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt: ``text`` from outside or from here, or the control token ``control``."""

    text: str = ""
    control: str | None = None
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as numbers: ``input_ids`` and ``labels`` of one length, places not supervised holding ``IGNORED``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised_tokens(self) -> int:
        """How many places carry a label."""
        return sum(label != IGNORED for label in self.labels)


def encode(pieces: Iterable[Piece], tokenizer: Any, image_tokens: int) -> Encoded:
    """Token ids and labels of a prompt.

    Args:
        pieces: the prompt.
        tokenizer: the tokenizer of :func:`embervlm.tokens.load_tokenizer`.
        image_tokens: places that a picture takes; ``<|image|>`` is repeated so often.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    for piece in pieces:
        if piece.control == IMAGE:
            ids = [CONTROL_IDS[IMAGE]] * image_tokens
        elif piece.control == END_OF_TEXT:
            ids = [END_OF_TEXT_ID]
        elif piece.control is not None:
            ids = [CONTROL_IDS[piece.control]]
        else:
            ids = encode_text(tokenizer, piece.text)
        input_ids.extend(ids)
        labels.extend(ids if piece.supervised else [IGNORED] * len(ids))
    return Encoded(input_ids, labels)


def chat_pieces(turns: Sequence[tuple[str, str | None]], has_image: bool) -> list[Piece]:
    """A conversation. Each turn is a question and its answer; an answer of None is left for the model to write."""
    pieces = [Piece(control=IMAGE)] if has_image else []
    for number, (question, answer) in enumerate(turns):
        pieces.append(Piece(f"{chr(10) if number else ''}User: {question.strip()}\nAssistant:"))
        if answer is not None:
            pieces.append(Piece(f" {answer.strip()}", supervised=True))
            pieces.append(Piece(control=END_OF_TEXT, supervised=True))
    return pieces


def robot_description(robot: Robot) -> str:
    """The text by which the model knows a robot."""
    parts = [f"{robot.name}. Capabilities: {', '.join(robot.capabilities)}."]
    if robot.limitations:
        parts.append(f"Limitations: {', '.join(robot.limitations)}.")
    if robot.environments:
        parts.append(f"Environments: {', '.join(robot.environments)}.")
    if robot.payload_kg is not None:
        parts.append(f"Payload: {robot.payload_kg:g} kg.")
    return " ".join(parts)


def task_pieces(task: str, has_image: bool) -> list[Piece]:
    """The constant start of a selection: the picture and the task. The fleet goes before it, by its own states."""
    pieces = [Piece(control=IMAGE)] if has_image else []
    return [*pieces, Piece(f"Task: {task.strip()}\n")]


def encode_task(task: str, tokenizer: Any) -> list[int]:
    """The token ids of a task by itself, as the robot head's text encoder reads it."""
    return encode(task_pieces(task, has_image=False), tokenizer, image_tokens=0).input_ids


def reasoning_pieces(requirements: str, environment: str | None) -> list[Piece]:
    """The two steps before the selection: what the task needs and what the picture shows (None: no picture)."""
    seen = Piece(f"\n{environment}", supervised=True) if environment is not None else Piece(f"\n{NO_PICTURE}")
    return [
        Piece(control=REASONING_START, supervised=True),
        Piece(requirements, supervised=True),
        seen,
        Piece(control=REASONING_END, supervised=True),
    ]


def selection_pieces(names: Sequence[str]) -> list[Piece]:
    """The selection itself: its control token, at which the robot head reads, and the names, the leader first."""
    return [Piece(control=ROBOT_SELECTION), Piece(selection_text(names), supervised=True)]


def selection_text(names: Sequence[str]) -> str:
    """The names of the selected robots as they stand in the text, the leader first."""
    return f" {', '.join(names)}"


def grounds_pieces(capabilities: Sequence[str]) -> list[Piece]:
    """The step after the selection: those capabilities of the leader that meet the need."""
    return [Piece(f"\n{BECAUSE}"), Piece(f" {', '.join(capabilities)}", supervised=True)]


def plan_pieces(steps: Sequence[tuple[int, str, str]]) -> list[Piece]:
    """A plan of (order, robot, subtask); steps of one order run side by side."""
    pieces = [Piece(control=ACTION_PLAN, supervised=True)]
    for order, robot, subtask in steps:
        pieces += [
            Piece(f" {order}", supervised=True),
            Piece(f" {robot}", supervised=True),
            Piece(f": {subtask.strip()}\n", supervised=True),
        ]
    return pieces


def end_pieces() -> list[Piece]:
    """The end of a selection."""
    return [Piece(control=END_OF_TEXT, supervised=True)]


def decision_sentence(primary: str, others: Sequence[str]) -> str:
    """The fourth reasoning step, for people."""
    return f"{primary} leads" + (f", together with {', '.join(others)}." if others else ".")
