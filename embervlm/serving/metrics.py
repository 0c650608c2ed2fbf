"""What the server counts, as Prometheus reads it from ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from embervlm.serving.engine import Engine
from embervlm.serving.limits import App, Message, Receive, Send

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _EngineCollector:
    """Counters that the engine keeps itself."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[CounterMetricFamily]:
        """The counters at this moment."""
        batch = self.engine.batch
        counted = (
            ("embervlm_batch_steps", "Steps that the batch has run", 0 if batch is None else batch.steps),
            ("embervlm_batch_rows", "Texts that took part in these steps, summed", 0 if batch is None else batch.rows),
            ("embervlm_stopped", "Answers stopped because the client left or the time was up", self.engine.stopped),
        )
        return [CounterMetricFamily(name, about, value=value) for name, about, value in counted]


class Metrics:
    """The server's registry, and the middleware that counts its requests."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "embervlm_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "embervlm_request_seconds",
            "Seconds from request to answer",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        gauge = Gauge("embervlm_waiting", "Questions in the queue", registry=self.registry)
        gauge.set_function(lambda: engine.waiting)
        gauge = Gauge("embervlm_working", "Questions being answered", registry=self.registry)
        gauge.set_function(lambda: engine.working)
        self.registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        """All of it in the text format."""
        return generate_latest(self.registry)


class Counted:
    """Middleware: counts what the application answers, by the route's path and never by what was asked for."""

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), ["none"]

        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            route = getattr(scope.get("route"), "path", "other") or "other"
            self.metrics.requests.labels(route, status[0]).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
