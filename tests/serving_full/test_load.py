"""Load on a real server: what is over capacity is refused, nothing is lost, places come back. Figures are printed."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
from served import QUEUE, SLOTS, Served

from embervlm.serving.samples import FOLDER, SAMPLES

PICTURES = [((FOLDER / f"{sample.name}.jpg").read_bytes(), sample.task) for sample in SAMPLES]


def ask(served: Served, number: int, reason: bool = True) -> tuple[int, float, dict]:
    data, task = PICTURES[number % len(PICTURES)]
    files = {"task": (None, task), "image": ("x.jpg", data), "reason": (None, json.dumps(reason))}
    started = time.perf_counter()
    response = requests.post(f"{served.url}/v1/select", files=files, timeout=120)
    return response.status_code, time.perf_counter() - started, response.json()


def p99(times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]


def test_load_at_1_4_and_16_times_capacity(served: Served) -> None:
    alone = [ask(served, number)[1] for number in range(18)]
    print(f"alone: median {1000 * statistics.median(alone):.0f} ms, p99 {1000 * p99(alone):.0f} ms")
    for times in (1, 4, 16):
        crowd, stop, health = SLOTS * times, threading.Event(), []

        def watch(stop: threading.Event = stop, health: list[float] = health) -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    started = time.perf_counter()
                    assert session.get(f"{served.url}/healthz", timeout=30).ok
                    health.append(time.perf_counter() - started)
                    time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(crowd) as threads:
            found = list(threads.map(lambda number: ask(served, number), range(crowd * 2)))
        stop.set()
        watcher.join()
        accepted = [seconds for status, seconds, _ in found if status == 200]
        refused = [seconds for status, seconds, _ in found if status == 429]
        # Nothing is lost: each is answered or refused, and an answer is a whole one.
        assert len(accepted) + len(refused) == len(found) == crowd * 2
        assert all(len(answer["robots"]) == 5 for status, _, answer in found if status == 200)
        assert times > 1 or not refused
        assert times < 16 or refused
        print(
            f"{times:2} x capacity: {len(accepted)} accepted, p99 {1000 * p99(accepted):.0f} ms"
            f" ({p99(accepted) / p99(alone):.1f} x alone); {len(refused)} refused"
            + (f", p99 {1000 * p99(refused):.0f} ms" if refused else "")
            + f"; /healthz p99 {1000 * p99(health):.0f} ms"
        )
    assert served.metric("embervlm_waiting") == served.metric("embervlm_working") == 0


@pytest.mark.parametrize("reason", [False, True], ids=["brief", "with reasoning"])
def test_eight_clients_share_a_batch_and_get_the_same_answers(served: Served, reason: bool) -> None:
    numbers = range(48 if not reason else 24)
    started = time.perf_counter()
    alone = [ask(served, number, reason) for number in numbers]
    one_by_one = time.perf_counter() - started
    started = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda number: ask(served, number, reason), numbers))
    batched = time.perf_counter() - started
    for (_, _, first), (_, _, second) in zip(alone, together, strict=True):
        for answer in (first, second):
            answer.pop("timing_ms")
            for robot in answer["robots"]:
                robot["confidence"] = round(robot["confidence"], 4)
        assert first == second
    print(f"reason={reason}: {len(numbers) / one_by_one:.1f} a second alone, {len(numbers) / batched:.1f} by 8 clients")
    print(f"{one_by_one / batched:.2f} times the throughput")


def test_places_of_clients_that_leave_or_dawdle_come_back(served: Served) -> None:
    url = urlsplit(served.url)
    address = (url.hostname, url.port)
    body = json.dumps({"task": "Film the roof, then carry the crates to the gate"}).encode()
    head = f"POST /v1/select HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    head = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(100):
        with socket.create_connection(address) as connection:
            connection.sendall(head + body)
    slow = [socket.create_connection(address) for _ in range(50)]
    for connection in slow:
        connection.sendall(head + body[:5])
    assert ask(served, 0)[0] in (200, 429)
    for _ in range(200):
        if served.metric("embervlm_working") == served.metric("embervlm_waiting") == 0:
            break
        time.sleep(0.05)
    with ThreadPoolExecutor(SLOTS + QUEUE) as threads:
        assert {status for status, _, _ in threads.map(lambda number: ask(served, number), range(SLOTS + QUEUE))} == {
            200
        }
    # The slow ones are told so, each on its own connection.
    for connection in slow:
        connection.settimeout(30)
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
        connection.close()
    assert served.metric("embervlm_stopped_total") >= 1
