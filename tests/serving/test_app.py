"""The server's routes over a tiny model: the contract's JSON in each form, limits before work, refusals in one form."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from fastapi.testclient import TestClient
from made_pictures import bomb, picture

from embervlm.fleet import Fleet
from embervlm.serving.app import create_app
from embervlm.serving.engine import BusyError, Engine, Question, StoppedError
from embervlm.serving.limits import Guard
from embervlm.serving.samples import FOLDER, SAMPLES
from embervlm.serving.settings import KEY_VARIABLE, ServingError, Settings, key_from_environment

PAGE = Path(__file__).resolve().parents[2] / "embervlm" / "serving" / "page"
HOST = "http://127.0.0.1:8000"
FLEET = {
    "robots": [{"name": name, "capabilities": ["lifting"], "limitations": [], "environments": []} for name in "AB"]
}


def ready(client: TestClient) -> TestClient:
    for _ in range(200):
        if client.get("/readyz").status_code == 200:
            return client
        time.sleep(0.02)
    raise AssertionError("the server did not become ready")


@pytest.fixture(scope="module")
def client(tiny_selector: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(slots=2, queue=2), tiny_selector), base_url=HOST) as made:
        yield ready(made)


def refused(response: Any, status: int) -> str:
    """The one line of a refusal, which has one form everywhere."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code"} and error["code"] == status
    assert error["message"] and "\n" not in error["message"]
    return str(error["message"])


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in filter(None, text.split("\n\n")):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_json_and_multipart_give_the_contracts_answer(client: TestClient, tiny_selector: Any) -> None:
    data = picture()
    expected = tiny_selector.select("Film the roof", data).to_dict()
    as_json = client.post("/v1/select", json={"task": "Film the roof", "image": base64.b64encode(data).decode()})
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    as_url = client.post("/v1/select", json={"task": "Film the roof", "image": url})
    as_form = client.post("/v1/select", data={"task": "Film the roof"}, files={"image": ("x.png", data)})
    for response in (as_json, as_url, as_form):
        assert response.status_code == 200
        answer = response.json()
        assert list(answer) == list(expected)
        assert {**answer, "timing_ms": 0, "robots": 0} == {**expected, "timing_ms": 0, "robots": 0}
        for found, wanted in zip(answer["robots"], expected["robots"], strict=True):
            assert found["robot"] == wanted["robot"] and abs(found["confidence"] - wanted["confidence"]) < 1e-4


def test_a_request_may_bring_its_own_fleet(client: TestClient) -> None:
    answer = client.post("/v1/select", json={"task": "Lift it", "fleet": FLEET, "top_n": 1, "reason": False}).json()
    assert answer["primary"] in "AB" and len(answer["robots"]) == 1 and answer["reasoning"] == []
    form = {"task": "Lift it", "fleet": json.dumps(FLEET), "top_n": "1", "reason": "false"}
    assert client.post("/v1/select", data=form).status_code == 415  # urlencoded
    files = {
        "task": (None, "Lift it"),
        "fleet": (None, json.dumps(FLEET)),
        "top_n": (None, "1"),
        "reason": (None, "false"),
    }
    again = client.post("/v1/select", files=files).json()
    assert {**again, "timing_ms": 0} == {**answer, "timing_ms": 0}
    assert client.get("/v1/fleet").json() == Fleet.default().to_dict()


def test_the_reasoning_streams_before_the_result(client: TestClient) -> None:
    response = client.post("/v1/select/stream", json={"task": "Film the roof"})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert [name for name, _ in found[:-1]] == ["step"] * (len(found) - 1) and found[-1][0] == "result"
    assert found[0][1]["part"] == "requirements"
    assert found[-1][1]["reasoning"][3].startswith(found[-1][1]["primary"])
    wrong = client.post("/v1/select/stream", json={"task": "Film the roof", "image": base64.b64encode(b"no").decode()})
    assert events(wrong.text)[-1][0] == "error" and events(wrong.text)[-1][1]["error"]["code"] == 422


def test_a_plan_may_be_a_behaviour_tree(client: TestClient) -> None:
    response = client.post("/v1/select?plan_format=behaviortree", json={"task": "Film the roof"})
    assert response.headers["content-type"] == "application/xml" and 'BTCPP_format="4"' in response.text
    streamed = client.post("/v1/select/stream?plan_format=behaviortree", json={"task": "Film the roof"})
    assert 'BTCPP_format="4"' in events(streamed.text)[-1][1]["behaviortree"]
    assert "plan_format" in refused(client.post("/v1/select?plan_format=yaml", json={"task": "x"}), 422)


def test_openais_form(client: TestClient) -> None:
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    parts = [{"type": "text", "text": "Film the roof"}, {"type": "image_url", "image_url": {"url": url}}]
    asked: dict[str, Any] = {"model": "spark", "messages": [{"role": "user", "content": parts}], "temperature": 0.2}
    answer = client.post("/v1/chat/completions", json=asked).json()
    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion" and choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"])["task"] == "Film the roof"
    short = client.post("/v1/chat/completions", json=asked | {"max_tokens": 5}).json()["choices"][0]
    assert short["finish_reason"] == "length" and len(short["message"]["content"]) < 60
    lines = client.post("/v1/chat/completions", json=asked | {"stream": True}).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert json.loads(chunks[-2]["choices"][0]["delta"]["content"])["task"] == "Film the roof"
    for tokens in (-1, 0, 10**12, 2.5, "9"):
        assert "max_tokens" in refused(client.post("/v1/chat/completions", json=asked | {"max_tokens": tokens}), 422)
    parts[1]["image_url"] = {"url": "http://127.0.0.1/picture.png"}  # type: ignore[assignment]
    assert "fetches nothing" in refused(client.post("/v1/chat/completions", json=asked), 422)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "task"),
        ({"task": "  "}, 422, "the task is empty"),
        ({"task": "x" * 2_001}, 422, "task"),
        ({"task": 7}, 422, "task"),
        ({"task": "x", "top_n": -1}, 422, "top_n"),
        ({"task": "x", "top_n": 10**30}, 422, "top_n"),
        ({"task": "x", "coverage": 2}, 422, "coverage"),
        ({"task": "x", "coverage": 0.9}, 422, "no coverage can be promised"),
        ({"task": "x", "image": "%"}, 422, "not base64"),
        ({"task": "x", "image": "https://example.org/a.png"}, 422, "fetches nothing"),
        ({"task": "x", "image": "AAAA"}, 422, "not a picture"),
        ({"task": "x", "wrong": 1}, 422, "wrong"),
        ({"task": "x", "fleet": {"robots": []}}, 422, "fleet"),
        ({"task": "x", "fleet": {"robots": FLEET["robots"] * 2}}, 422, "called"),
        ([1], 422, "body"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(client: TestClient, body: Any, status: int, said: str) -> None:
    assert said in refused(client.post("/v1/select", json=body), status)


def test_pictures_are_held_to_their_limits_before_they_are_decoded(client: TestClient) -> None:
    def post(data: bytes) -> Any:
        return client.post("/v1/select", data={"task": "x"}, files={"image": ("x", data)})

    huge = bomb(9_000, 9_000)
    assert len(huge) < 20_000
    assert "9000x9000 pixels" in refused(post(huge), 422)
    assert "1x1 pixels show no scene" in refused(post(picture(1, 1)), 422)
    assert "1x10000 pixels show no scene" in refused(post(picture(1, 10_000)), 422)
    assert "not a picture" in refused(post(b""), 422)


def test_bodies_are_held_to_their_limits(client: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            yield bytes(1_000_000)

    assert "10,000,000 bytes" in refused(client.post("/v1/select", content=bytes(10_000_000)), 413)
    assert "more than" in refused(client.post("/v1/select", content=pieces()), 413)
    assert "not JSON" in refused(
        client.post("/v1/select", content=b"{", headers={"content-type": "application/json"}), 400
    )
    assert "found 'text/plain'" in refused(
        client.post("/v1/select", content=b"x", headers={"content-type": "text/plain"}), 415
    )
    assert client.get("/nothing").status_code == 404


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a request that is not whole must not reach the application")

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, max_body=10, max_buffered=100, body_timeout=0.05)
    asyncio.run(guard({"type": "http", "headers": [(b"host", b"x")]}, never, send))
    assert sent[0]["status"] == 408 and guard.buffered == 0


def test_other_origins_and_names_are_refused(client: TestClient) -> None:
    assert "other origins" in refused(client.get("/v1/fleet", headers={"origin": "http://evil.example"}), 403)
    assert "not called" in refused(client.get("/v1/fleet", headers={"host": "evil.example"}), 403)
    assert client.get("/v1/fleet", headers={"origin": HOST}).status_code == 200


def test_a_key_is_asked_for_where_one_is_set(tiny_selector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "open-sesame")
    settings = Settings(slots=1, key=key_from_environment())
    assert "open-sesame" not in repr(settings)
    with TestClient(create_app(settings, tiny_selector), base_url=HOST) as client:
        ready(client)
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer \u00e4".encode()}):
            for path in ("/v1/fleet", "/v1/samples", "/metrics"):
                response = client.get(path, headers=headers)
                refused(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
            refused(client.post("/v1/select", json={"task": "x"}, headers=headers), 401)
        assert client.get("/v1/fleet", headers={"authorization": "Bearer open-sesame"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
    for wrong in ("", "short", "with blank in it"):
        monkeypatch.setenv(KEY_VARIABLE, wrong)
        with pytest.raises(ServingError, match=KEY_VARIABLE):
            key_from_environment()


def test_settings_out_of_range_are_refused() -> None:
    for values in ({"slots": 0}, {"queue": -1}, {"port": 70_000}, {"timeout_s": 0}):
        with pytest.raises(ServingError, match="must be from"):
            Settings(**values)


def test_a_full_queue_refuses_and_comes_back(tiny_selector: Any) -> None:
    engine = Engine(tiny_selector, slots=1, queue=1, timeout_s=30, max_pixels=10_000)
    engine.start()
    holding, held = threading.Event(), []
    first = engine.submit(Question("Film the roof"), on_step=lambda part, text: held.append(holding.wait(10)))
    second = engine.submit(Question("Film the roof"))
    with pytest.raises(BusyError) as error:
        engine.submit(Question("Film the roof"))
    assert error.value.retry_after >= 1
    second.cancel()
    holding.set()
    assert first.answer.result(10).task == "Film the roof"
    with pytest.raises(StoppedError, match="the client has left"):
        second.answer.result(10)
    assert engine.submit(Question("Film the roof")).answer.result(10)
    assert engine.close(5) and engine.waiting == engine.working == 0 and engine.stopped == 1
    with pytest.raises(BusyError):
        engine.submit(Question("Film the roof"))


def test_an_answer_that_takes_too_long_is_stopped(tiny_selector: Any) -> None:
    with TestClient(create_app(Settings(slots=1), tiny_selector), base_url=HOST) as client:
        ready(client)
        client.app.state.engine.timeout_s = 0.0  # type: ignore[attr-defined]
        response = client.post("/v1/select", json={"task": "Film the roof"})
        assert "the time is up" in refused(response, 503) and response.headers["retry-after"] == "1"
        assert events(client.post("/v1/select/stream", json={"task": "Film it"}).text)[-1][0] == "error"


def test_metrics_count_by_route_and_not_by_what_was_asked_for(client: TestClient) -> None:
    client.post("/v1/select", json={"task": "Film the roof"})
    client.get("/secret-path-of-a-user")
    text = client.get("/metrics").text
    assert 'embervlm_requests_total{route="/v1/select",status="200"}' in text
    assert "secret" not in text and "embervlm_batch_rows_total" in text and "embervlm_waiting 0.0" in text


def test_the_openapi_document_has_examples_and_declares_every_refusal(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {
        "/v1/select",
        "/v1/select/stream",
        "/v1/fleet",
        "/v1/chat/completions",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= set(document["paths"])
    for path in ("/v1/select", "/v1/select/stream", "/v1/chat/completions"):
        operation = document["paths"][path]["post"]
        assert {"400", "401", "408", "413", "422", "429", "503"} <= set(operation["responses"])
    examples = document["paths"]["/v1/select"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        body = {name: value for name, value in example["value"].items() if name != "coverage"}
        assert client.post("/v1/select", json=body).status_code == 200
    text = json.dumps(document)
    for reference in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert reference in document["components"]["schemas"]


def test_the_page_needs_nothing_from_outside(client: TestClient) -> None:
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for name in ("index.html", "style.css", "app.js"):
        text = (PAGE / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text
    assert "<style" not in response.text and " style=" not in response.text and "onclick" not in response.text
    for sample in client.get("/v1/samples").json():
        with Image.open(io.BytesIO(client.get(sample["image"]).content)) as opened:
            assert opened.size == (288, 288)
    assert len(list(FOLDER.iterdir())) == len(SAMPLES)


def test_the_command_listens_answers_and_ends_on_sigterm(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "embervlm.cli", "serve", "--model", str(tiny_folder), "--port", "0"]
    key = "secret-of-the-server-3f9a"
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", KEY_VARIABLE: key},
    )
    try:
        assert server.stdout is not None
        line = next(each for each in server.stdout if "listening on" in each)
        address = line.split("listening on ")[1].strip()
        assert address.startswith("http://127.0.0.1:")
        import httpx2

        for _ in range(200):
            if httpx2.get(f"{address}/readyz").status_code == 200:
                break
            time.sleep(0.05)
        said = []
        with httpx2.Client(base_url=address, headers={"authorization": f"Bearer {key}"}) as client:
            assert client.post("/v1/select", json={"task": "Film the roof"}).status_code == 200
            for body in ({"task": ""}, {"task": "x", "image": "AAAA"}, {"task": "x", "fleet": {"robots": []}}, []):
                said.append(client.post("/v1/select", json=body))
                assert said[-1].status_code == 422
            said.append(client.post("/v1/select", json={"task": "x"}, headers={"authorization": "Bearer wrong"}))
            said += [client.get(path) for path in ("/metrics", "/openapi.json", "/v1/fleet", "/readyz", "/none")]
        server.send_signal(signal.SIGTERM)
        log = server.communicate(timeout=30)[0]
        assert server.returncode in (0, -signal.SIGTERM)
        # Neither the key nor where things lie on this machine leaves it; the log stays, but has no key either.
        for text in (log, *(each.text + str(each.headers) for each in said)):
            assert key not in text
        for response in said:
            for place in (tiny_folder, Path.home(), Path(__file__).parents[2]):
                assert f"{place}/" not in response.text and str(tiny_folder) not in response.text
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
