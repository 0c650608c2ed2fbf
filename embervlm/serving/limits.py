"""Limits that hold before any work is done: of a request's bytes, its time to arrive, a picture's size.

The middleware reads a whole request, within its limits, before the application sees it.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from embervlm.data.images import ALLOWED_FORMATS, MAX_SIDE, ImageError
from embervlm.selection import MIN_PICTURE_SIDE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: What the page may do, and what every answer says of itself.
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        b" media-src blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
]


def check_picture(data: bytes, max_pixels: int) -> None:
    """Hold a picture's header to the limits, so that nothing is decoded in vain.

    Raises:
        ImageError: it is no picture, or has too many pixels or too few.
    """
    try:
        with Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        raise ImageError(f"image: too many pixels; at most {max_pixels:,} are decoded") from None
    except Exception:
        # Whatever a broken header makes Pillow raise; decoding says the same more precisely for those that open.
        raise ImageError(f"image: not a picture that can be read; expected {', '.join(ALLOWED_FORMATS)}") from None
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"image: {width}x{height} pixels; at most {max_pixels:,} and {MAX_SIDE:,} a side are decoded; make it"
            " smaller"
        )
    if min(width, height) < MIN_PICTURE_SIDE:
        raise ImageError(f"image: {width}x{height} pixels show no scene; at least {MIN_PICTURE_SIDE} a side are needed")


def error_body(status: int, message: str, kind: str) -> dict[str, Any]:
    """An error as every route answers it; OpenAI's clients read it too."""
    return {"error": {"message": message, "type": kind, "code": status}}


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Guard:
    """Middleware: reads bodies within limits, refuses other origins, adds the security headers.

    Args:
        app: what is guarded.
        max_body: bytes of one body.
        max_buffered: bytes of all bodies that are being read or answered.
        body_timeout: seconds for a body to arrive.
        hosts: by which names the server may be called; any without. A page of another site can give its own name this
            machine's address, but not change the name that the browser sends.
    """

    def __init__(
        self, app: App, *, max_body: int, max_buffered: int, body_timeout: float, hosts: tuple[str, ...] | None = None
    ) -> None:
        self.app, self.hosts = app, hosts
        self.max_body, self.max_buffered, self.body_timeout = max_body, max_buffered, body_timeout
        self.buffered = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        held = [0]
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            try:
                self._check_origin(headers)
                body = await self._read(headers, receive, held)
            except _RefusedError as refused:
                await _answer(send_with_headers, refused)
                return
            if body is None:
                return  # the client has left
            given = False

            async def replay() -> Message:
                nonlocal given
                if not given:
                    given = True
                    return {"type": "http.request", "body": body, "more_body": False}
                return await receive()

            await self.app(scope, replay, send_with_headers)
        finally:
            self.buffered -= held[0]

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """A page of another site must not use a visitor's browser to reach this server."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise _RefusedError(
                403, f"the server is not called {host!r:.80}; expected {', '.join(self.hosts)}", "forbidden"
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != host.encode("latin-1"):
            raise _RefusedError(403, "requests from pages of other origins are refused", "forbidden")

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, held: list[int]) -> bytes | None:
        declared = headers.get(b"content-length", b"0")
        size = int(declared) if declared.isdigit() and len(declared) < 19 else 0
        if size > self.max_body:
            if size <= 8 * self.max_body and b"expect" not in headers:
                # Closing a connection that is still being written to would destroy the answer.
                await self._discard(receive)
            raise _RefusedError(413, f"the body has {size:,} bytes; at most {self.max_body:,} are read", "too_large")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    held[0] += len(part)
                    self.buffered += len(part)
                    if held[0] > self.max_body:
                        raise _RefusedError(413, f"the body has more than {self.max_body:,} bytes", "too_large")
                    if self.buffered > self.max_buffered:
                        raise _RefusedError(429, "too much is being sent at the moment; ask again in 1 s", "busy")
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            message_text = f"the body did not arrive within {self.body_timeout:g} s"
            raise _RefusedError(408, message_text, "timeout") from None

    async def _discard(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(min(1.0, self.body_timeout)):
                while True:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


async def _answer(send: Send, refused: _RefusedError) -> None:
    body = json.dumps(error_body(refused.status, str(refused), refused.kind)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 429:
        headers.append((b"retry-after", b"1"))
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
