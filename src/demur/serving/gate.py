"""What stands before the endpoints: API keys, and how long requests may be, in bytes and seconds.

Plain ASGI, so that streams pass through untouched and a body that is too long is never read whole.
"""

import asyncio
import hmac
import json
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demur.serving.errors import ApiError

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Answered without a key: probes and scrapers have none."""

LAST = {"Connection": "close"}
"""Of answers to a body that was not read to its end."""


class Gate:
    """Refuses requests without a key, and those that are too long.

    Args:
        app: What is behind it.
        api_keys: Any of them opens; none asks for none.
        max_bytes: Most bytes of a body.
        body_timeout_s: Until a body has to be there, in seconds.
    """

    def __init__(
        self, app: ASGIApp, *, api_keys: Sequence[str], max_bytes: int, body_timeout_s: float
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._max_bytes = max_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS and not self._is_known(headers):
            await _refuse(_without_key(), send)
            return
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await _refuse(_too_long(self._max_bytes), send)
            return
        body = _Body(receive, send, self._max_bytes, timeout_s=self._body_timeout_s)
        await self._app(scope, body.receive, body.send)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        """Compare the given key with every one of ours, each in constant time."""
        if not self._keys:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


class _Body:
    """A body that comes: where it is refused, our error is sent, whatever is made of its end."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, *, timeout_s: float) -> None:
        self._receive, self._send = receive, send
        self._max_bytes = self._left = max_bytes
        self._ends_at: float | None = asyncio.get_running_loop().time() + timeout_s
        """None once the body is there: clients may wait as long as they like."""
        self._error: ApiError | None = None

    async def receive(self) -> Message:
        """Pass a piece on while there is room and time."""
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            self._error = _too_slow()
            raise self._error from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._error = _too_long(self._max_bytes)
            raise self._error
        if not message.get("more_body", False):
            self._ends_at = None
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on, or send our own in its place."""
        if self._error is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            await _refuse(self._error, self._send)


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request is longer than {max_bytes} bytes",
        code="request_too_large",
        headers=LAST,
    )


def _too_slow() -> ApiError:
    return ApiError(
        408, "the request's body was not complete in time", code="request_timeout", headers=LAST
    )


def _without_key() -> ApiError:
    return ApiError(
        401,
        "give one of this server's keys as Authorization: Bearer KEY",
        type="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.as_dict()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
