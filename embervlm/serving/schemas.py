"""What requests and answers look like: models for the OpenAPI document with examples, and their way to a question."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embervlm.fleet import Fleet, FleetError
from embervlm.prompts import robot_description
from embervlm.selection import MAX_COVERAGE, MAX_TASK_CHARACTERS, MIN_COVERAGE, check_task
from embervlm.serving.engine import Question

#: Of the descriptions of a request's own fleet together: they are read anew for each.
MAX_FLEET_CHARACTERS = 16_000

PlanFormat = Literal["json", "behaviortree"]
_Model = TypeVar("_Model", bound=BaseModel)

EXAMPLE_FLEET: dict[str, Any] = {
    "robots": [
        {
            "name": "Mast Camera",
            "capabilities": ["watching a yard from above", "day and night video"],
            "limitations": ["does not move"],
            "environments": ["outdoor"],
        },
        {
            "name": "Forklift",
            "capabilities": ["lifting pallets", "heavy payload"],
            "limitations": ["flat floors only"],
            "environments": ["warehouse"],
        },
    ]
}
_TASK = "Somebody must hold the cup for Mrs Klein while she drinks."


class RequestError(ValueError):
    """A request that cannot be understood: 422, or 400 where it is not even of its form."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RobotIn(_Strict):
    """A robot of a request's own fleet."""

    name: str = Field(min_length=1, max_length=80)
    capabilities: list[str] = Field(min_length=1, max_length=50)
    limitations: list[str] = Field(max_length=50)
    environments: list[str] = Field(max_length=50)
    count: int | None = Field(None, ge=1)
    payload_kg: float | None = Field(None, ge=0)


class FleetIn(_Strict):
    """Who can be sent, as a fleet file has it."""

    robots: list[RobotIn] = Field(min_length=1, max_length=1000)


class SelectIn(_Strict):
    """A task, and what it is about."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"task": _TASK, "coverage": 0.9},
                {"task": "Stack the pallets", "reason": False, "fleet": EXAMPLE_FLEET},
            ]
        },
    )

    task: str = Field(min_length=1, max_length=MAX_TASK_CHARACTERS, description="what is to be done, in plain words")
    image: str | None = Field(None, description="the scene: a picture's bytes in base64, or as a data URL")
    top_n: int | None = Field(None, ge=1, le=1000, description="list only so many robots")
    reason: bool = Field(True, description="write the grounds too")
    coverage: float | None = Field(
        None, ge=MIN_COVERAGE, le=MAX_COVERAGE, description="name the robots among which the right leader is this often"
    )
    fleet: FleetIn | None = Field(None, description="who can be sent; the server's own fleet without it")


class ScoreOut(BaseModel):
    """A robot's part in an answer."""

    robot: str
    confidence: float = Field(ge=0, le=1, description="the probability that it is the right one to lead")
    selected: bool


class PhaseOut(BaseModel):
    """One phase of the plan."""

    step: int
    robot: str
    subtask: str
    depends_on: list[int]


class SelectOut(BaseModel):
    """An answer."""

    task: str
    primary: str
    selected: list[str]
    robots: list[ScoreOut]
    plan: list[PhaseOut]
    reasoning: list[str]
    timing_ms: dict[str, float]
    prediction_set: list[str] | None = Field(None, description="where coverage was asked for")
    ask_a_person: bool | None = Field(None, description="where coverage was asked for: several may be right")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: int


class ErrorOut(BaseModel):
    """An error."""

    error: ErrorDetail


class FleetOut(BaseModel):
    """The server's own fleet."""

    robots: list[dict[str, Any]]


class HealthOut(BaseModel):
    """Whether the server lives, or is ready."""

    status: str


class TextPart(BaseModel):
    """Text of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str = Field(max_length=MAX_TASK_CHARACTERS)


class ImageUrl(BaseModel):
    """Where a picture is: within the request."""

    model_config = ConfigDict(strict=True)
    url: str = Field(description="a data URL; nothing is fetched", examples=["data:image/jpeg;base64,/9j/4AAQ"])
    detail: str | None = None


class ImagePart(BaseModel):
    """A picture of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    """A message; only the last of the user is answered."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class ChatIn(BaseModel):
    """A request in OpenAI's form; what does not apply to a selection, such as ``temperature``, is not looked at."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"examples": [{"model": "spark", "messages": [{"role": "user", "content": _TASK}]}]},
    )
    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=100)
    max_tokens: int | None = Field(None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=4096)
    n: int | None = Field(None, ge=1, le=1)
    stream: bool | None = None


def question_of(asked: SelectIn, max_robots: int) -> Question:
    """The question of a JSON request.

    Raises:
        RequestError, SelectionError, FleetError: it cannot be answered.
    """
    image = None if asked.image is None else decode_base64(asked.image)
    fleet = None if asked.fleet is None else own_fleet(asked.fleet.model_dump(exclude_none=True), max_robots)
    check_task(asked.task)
    return Question(asked.task, image, asked.top_n, asked.reason, fleet, asked.coverage)


def question_of_form(form: dict[str, str | bytes], max_robots: int) -> Question:
    """The question of a multipart request: the same fields as text, ``image`` a file, ``fleet`` JSON.

    Raises:
        RequestError, SelectionError, FleetError: it cannot be answered.
    """
    values: dict[str, Any] = {}
    for name, value in form.items():
        if name == "image":
            continue
        if isinstance(value, bytes):
            raise RequestError(f"{name}: expected text, found a file")
        values[name] = value
    image = form.get("image")
    if isinstance(image, str):
        if image:
            raise RequestError("image: expected a file, found text")
        image = None
    try:
        for name in ("top_n", "coverage", "fleet", "reason"):
            if name in values:
                values[name] = None if values[name] == "" else json.loads(values[name])
        if values.get("reason", True) is None:
            del values["reason"]
    except (ValueError, RecursionError):
        raise RequestError(f"{name}: not JSON, found {values[name]!r:.60}") from None
    question = question_of(validated(SelectIn, values), max_robots)
    return Question(question.task, image, question.top_n, question.reason, question.fleet, question.coverage)


def own_fleet(document: Any, max_robots: int) -> Fleet:
    """The fleet of a request.

    Raises:
        FleetError: it is none, or larger than a request's may be.
    """
    fleet = Fleet.from_dict(document)
    if (length := sum(len(robot_description(robot)) for robot in fleet)) > MAX_FLEET_CHARACTERS:
        raise FleetError(
            f"the fleet's descriptions have {length:,} characters; a request's own have at most"
            f" {MAX_FLEET_CHARACTERS:,}; describe it more briefly"
        )
    if len(fleet) > max_robots:
        raise FleetError(
            f"the fleet has {len(fleet)} robots; a request's own has at most {max_robots}; start the server with a"
            " model whose fleet it is"
        )
    return fleet


def decode_base64(text: str) -> bytes:
    """The bytes of base64 or of a data URL in base64.

    Raises:
        RequestError: it is neither.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError("image: expected a data URL in base64, such as data:image/jpeg;base64,...")
    elif "://" in text[:20]:
        raise RequestError("image: the server fetches nothing; send the picture's bytes in base64")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("image: not base64") from None
    if not data:
        raise RequestError("image: empty")
    return data


def validated(model: type[_Model], values: Any) -> _Model:
    """Values as a model.

    Raises:
        RequestError: names the first field that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(first_fault(error.errors(include_input=False, include_url=False))) from None


def first_fault(errors: Any) -> str:
    """The first of a validation's errors, in one line."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{place or 'body'}: {first['msg']}"[:300]
