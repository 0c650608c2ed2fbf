"""Runs the server: ``embervlm serve``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn

from embervlm.fleet import Fleet
from embervlm.selection import RobotSelector
from embervlm.serving.app import create_app
from embervlm.serving.settings import KEY_VARIABLE, LOOPBACK, Settings

logger = logging.getLogger(__name__)

#: Connections at a time; the next get 503. Slow clients take connections, but no places in the queue.
MAX_CONNECTIONS = 512
#: Seconds after which a thread that computes lets another have its turn: the loop must answer while others compute.
SWITCH_INTERVAL_S = 0.001


class _Server(uvicorn.Server):
    """Says where it listens as soon as it does."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in getattr(self, "servers", []):
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                logger.info("listening on http://%s:%d", shown, port)


def serve(settings: Settings, fleet: Path | None = None) -> None:
    """Load the model and answer until SIGTERM or SIGINT, then end what is in work.

    Args:
        settings: of the server.
        fleet: a fleet file in place of the model's own fleet.

    Raises:
        WeightsError, FleetError, OSError: the model or the fleet cannot be read, or the port is taken.
    """
    selector = RobotSelector.from_pretrained(settings.model)
    if fleet is not None:
        selector.fleet = Fleet.from_yaml(fleet)
    if settings.host not in LOOPBACK and settings.key is None:
        logger.warning("whoever reaches %s may ask; set %s to ask for a key", settings.host, KEY_VARIABLE)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = _Server(
        uvicorn.Config(
            create_app(settings, selector),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            server_header=False,
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
    )
    try:
        server.run()
    except SystemExit as leaving:
        if leaving.code:
            raise OSError(f"cannot listen on {settings.host}:{settings.port}; is the port taken?") from None
