"""The routes: what is asked is checked here, answered by the engine, and given back in the form that was asked for."""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from embervlm import __version__
from embervlm.behaviour_tree import behaviour_tree
from embervlm.selection import RobotSelector, Selection
from embervlm.serving.chat import Completion, question_of_chat
from embervlm.serving.engine import BusyError, Engine, Job, Question, StoppedError
from embervlm.serving.limits import Guard, error_body
from embervlm.serving.metrics import Counted, Metrics
from embervlm.serving.samples import PAGE, SAMPLES
from embervlm.serving.schemas import (
    EXAMPLE_FLEET,
    ChatIn,
    ErrorOut,
    FleetOut,
    HealthOut,
    PlanFormat,
    RequestError,
    SelectIn,
    SelectOut,
    first_fault,
    question_of,
    question_of_form,
    validated,
)
from embervlm.serving.settings import LOOPBACK, Settings

logger = logging.getLogger(__name__)

_EVENTS = "text/event-stream"
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorOut, "description": "not of the form that was announced"},
    401: {"model": ErrorOut, "description": "the bearer key is missing or wrong"},
    403: {"model": ErrorOut, "description": "from a page of another origin"},
    408: {"model": ErrorOut, "description": "the request did not arrive in time"},
    413: {"model": ErrorOut, "description": "too many bytes"},
    415: {"model": ErrorOut, "description": "neither JSON nor multipart"},
    422: {"model": ErrorOut, "description": "a field, the picture or the fleet cannot be used"},
    429: {"model": ErrorOut, "description": "the queue is full; Retry-After says when to ask again"},
    503: {"model": ErrorOut, "description": "the time was up, or the server is not ready"},
}
_FORM = {
    "type": "object",
    "required": ["task"],
    "properties": {
        "task": {"type": "string", "minLength": 1},
        "image": {"type": "string", "format": "binary", "description": "a picture's file"},
        "top_n": {"type": "integer", "minimum": 1},
        "reason": {"type": "boolean"},
        "coverage": {"type": "number", "minimum": 0.5, "maximum": 0.99},
        "fleet": {"type": "string", "description": "JSON as in the other form"},
    },
}
_SELECT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/SelectIn"},
                "examples": {
                    "a task": {"value": {"task": "Inspect the pipe for cracks", "coverage": 0.9}},
                    "another fleet": {"value": {"task": "Stack the pallets", "reason": False, "fleet": EXAMPLE_FLEET}},
                },
            },
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


def create_app(settings: Settings, selector: RobotSelector) -> FastAPI:
    """The application.

    Args:
        settings: of the server.
        selector: what answers.
    """
    engine = Engine(
        selector,
        slots=settings.slots,
        queue=settings.queue,
        timeout_s=settings.timeout_s,
        max_pixels=settings.max_pixels,
    )
    metrics = Metrics(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warm_up = asyncio.create_task(run_in_threadpool(engine.start))
        try:
            yield
        finally:
            await asyncio.wait({warm_up})
            if not await run_in_threadpool(engine.close, settings.drain_s):
                logger.warning("answers in work were stopped after %g s", settings.drain_s)

    app = FastAPI(
        title="EmberVLM",
        version=__version__,
        summary="A picture and a task in, the robots to send out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.engine = engine
    _add_error_handlers(app)
    checked = [Depends(_key_check(settings.key)), Depends(_room_check(engine))]
    _add_routes(app, settings, engine, metrics, checked)
    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.add_middleware(
        Guard,
        max_body=settings.max_body_bytes,
        max_buffered=settings.max_buffered_bytes,
        body_timeout=settings.body_timeout_s,
        # A key protects from whoever else may talk to the machine; without one, a loopback server is for its own names.
        hosts=LOOPBACK if settings.key is None and settings.host in LOOPBACK else None,
    )
    app.add_middleware(Counted, metrics=metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, settings: Settings, engine: Engine, metrics: Metrics, checked: list[Any]) -> None:
    formats = Annotated[PlanFormat, Query(description="behaviortree: XML of BehaviorTree.CPP 4 in place of JSON")]

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/healthz", response_model=HealthOut, tags=["state"], summary="Whether the server lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        response_model=HealthOut,
        responses={503: _ERRORS[503]},
        tags=["state"],
        summary="Whether it has warmed up and answers",
    )
    async def readyz() -> Any:
        if not engine.ready:
            return _error(503, "the model is warming up", "not_ready", {"retry-after": "1"})
        return {"status": "ready"}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: _ERRORS[401]},
        dependencies=checked[:1],
        tags=["state"],
        summary="Counters and times, as Prometheus reads them",
    )
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get(
        "/v1/fleet",
        response_model=FleetOut,
        responses={401: _ERRORS[401]},
        dependencies=checked[:1],
        tags=["selection"],
        summary="Who can be sent",
    )
    async def fleet() -> dict[str, Any]:
        return engine.selector.fleet.to_dict()

    @app.get(
        "/v1/samples",
        dependencies=checked[:1],
        responses={401: _ERRORS[401]},
        tags=["selection"],
        summary="Scenes to try",
    )
    async def samples() -> list[dict[str, str]]:
        return [
            {"title": each.title, "task": each.task, "image": f"/static/samples/{each.name}.jpg"} for each in SAMPLES
        ]

    @app.post(
        "/v1/select",
        response_model=SelectOut,
        responses=_ERRORS | {200: {"content": {"application/xml": {}}}},
        dependencies=checked,
        openapi_extra=_SELECT_BODY,
        tags=["selection"],
        summary="Select the robots for a task",
    )
    async def select(request: Request, plan_format: formats = "json") -> Response:
        found = await _answer(request, engine, await _question(request, settings))
        if plan_format == "behaviortree":
            return Response(behaviour_tree(found.plan, found.task), media_type="application/xml")
        return JSONResponse(found.to_dict())

    @app.post(
        "/v1/select/stream",
        response_class=StreamingResponse,
        responses=_ERRORS | {200: {"content": {_EVENTS: {"schema": {"type": "string"}}}}},
        dependencies=checked,
        openapi_extra=_SELECT_BODY,
        tags=["selection"],
        summary="The same as events: step (part, text so far), then result or error",
    )
    async def select_stream(request: Request, plan_format: formats = "json") -> Response:
        question = await _question(request, settings)

        def result(found: Selection) -> list[str]:
            answer = found.to_dict()
            if plan_format == "behaviortree":
                answer["behaviortree"] = behaviour_tree(found.plan, found.task)
            return [_event(answer, "result")]

        return _stream(engine, question, lambda part, text: _event({"part": part, "text": text}, "step"), result)

    @app.post(
        "/v1/chat/completions",
        responses=_ERRORS | {200: {"content": {_EVENTS: {"schema": {"type": "string"}}}}},
        dependencies=checked,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatIn"}}},
            }
        },
        tags=["selection"],
        summary="The same in OpenAI's form; the assistant's text is the answer's JSON",
    )
    async def chat(request: Request) -> Response:
        body = await request.body()
        asked, question = await run_in_threadpool(_chat_question, body)
        completion = Completion(asked, engine.selector.tokenizer)
        if not asked.stream:
            return JSONResponse(completion.whole(question, await _answer(request, engine, question)))
        written: dict[str, str] = {}

        def step(part: str, text: str) -> str:
            before, written[part] = written.get(part, ""), text
            more = text[len(before) :] if text.startswith(before) else text
            return _event(completion.chunk({"reasoning_content": more})) if more else ""

        def end(found: Selection) -> list[str]:
            return [*(_event(chunk) for chunk in completion.last_chunks(found)), "data: [DONE]\n\n"]

        return _stream(engine, question, step, end, named=False)


def _chat_question(body: bytes) -> tuple[ChatIn, Question]:
    asked = validated(ChatIn, _json(body))
    return asked, question_of_chat(asked)


async def _question(request: Request, settings: Settings) -> Question:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await request.body()
        return await run_in_threadpool(lambda: question_of(validated(SelectIn, _json(body)), settings.max_robots))
    if kind != "multipart/form-data":
        raise RequestError(f"expected application/json or multipart/form-data, found {kind!r:.60}", 415)
    fields: dict[str, str | bytes] = {}
    async with request.form(max_files=1, max_fields=8, max_part_size=256 * 1024) as form:
        for name, value in form.multi_items():
            if name in fields:
                raise RequestError(f"{name!r:.60} occurs twice")
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
    return await run_in_threadpool(question_of_form, fields, settings.max_robots)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON", 400) from None


async def _answer(request: Request, engine: Engine, question: Question) -> Selection:
    """Wait for an answer, unless the client leaves first."""
    job = engine.submit(question)
    answer = _future_of(job)
    gone = asyncio.create_task(_until_gone(request))
    either: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise StoppedError("the client has left")
        return answer.result()
    finally:
        job.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _future_of(job: Job) -> asyncio.Future[Selection]:
    future = asyncio.wrap_future(job.answer)
    # Where nobody waits any more, what stopped the work is no news.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _stream(
    engine: Engine,
    question: Question,
    step: Callable[[str, str], str],
    end: Callable[[Selection], list[str]],
    named: bool = True,
) -> StreamingResponse:
    """An answer as events: each new text of a part by ``step``, the result by ``end``."""
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
    last = [("", "")]

    def on_step(part: str, text: str) -> None:
        if (part, text) != last[0]:
            last[0] = (part, text)
            loop.call_soon_threadsafe(steps.put_nowait, (part, text))

    # Taken into the queue before the answer begins, so that a full one is still a 429.
    job = engine.submit(question, on_step)
    job.answer.add_done_callback(lambda _: loop.call_soon_threadsafe(steps.put_nowait, None))

    async def events() -> AsyncIterator[str]:
        try:
            while (found := await steps.get()) is not None:
                if event := step(*found):
                    yield event
            try:
                selection = job.answer.result()
            except Exception as error:
                yield _event(_as_error(error)[1], "error" if named else None)
                return
            for event in end(selection):
                yield event
        finally:
            job.cancel()

    return _Events(events(), job)


class _Events(StreamingResponse):
    """Events of a job, which ends with the connection even where not one event was sent."""

    def __init__(self, events: AsyncIterator[str], job: Job) -> None:
        super().__init__(events, media_type=_EVENTS, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


def _event(data: dict[str, Any], name: str | None = None) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _key_check(key: str | None) -> Callable[..., Awaitable[None]]:
    bearer = HTTPBearer(auto_error=False, description="only where the server was started with a key")

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if key is None:
            return
        shown = given.credentials if given is not None else ""
        if not hmac.compare_digest(shown.encode(), key.encode()):
            raise HTTPException(
                401,
                "the bearer key is missing or wrong; send Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )

    return check


def _room_check(engine: Engine) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        if not engine.ready:
            raise HTTPException(503, "the model is warming up", {"retry-after": "1"})
        engine.check_room()

    return check


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, kind), status, headers)


def _as_error(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """An error as an answer: its status, its body, its headers."""
    if isinstance(error, BusyError):
        return 429, error_body(429, str(error), "busy"), {"retry-after": str(error.retry_after)}
    if isinstance(error, StoppedError):
        return 503, error_body(503, f"no answer: {error}", "stopped"), {"retry-after": "1"}
    if isinstance(error, RequestError):
        return error.status, error_body(error.status, str(error), "invalid_request_error"), {}
    if isinstance(error, ValueError):
        # Pictures, fleets, tasks: each says in one line what was found, what was expected and the cure.
        return 422, error_body(422, " ".join(str(error).split())[:500], "invalid_request_error"), {}
    if isinstance(error, HTTPException):
        return error.status_code, error_body(error.status_code, str(error.detail), "error"), dict(error.headers or {})
    logger.error("an answer failed", exc_info=error)
    return 500, error_body(500, "the server has a fault; its log says which", "server_error"), {}


def _add_error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            error = RequestError(first_fault(error.errors()))
        status, body, headers = _as_error(error)
        return JSONResponse(body, status, headers)

    for kind in (BusyError, StoppedError, ValueError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in (SelectIn, ChatIn):
            own = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(own.pop("$defs", {}))
            components[model.__name__] = own
        app.openapi_schema = schema
    return app.openapi_schema
