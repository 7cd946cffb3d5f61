"""A pretend OpenAI-compatible server that does as the model's name says, and a guard before it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from demur.guard import Guard
from tests.guards import marker_guard
from tests.servers import CHAT, STARTED_WITHIN_S, Running, app_of, running

WITHIN_S = 10.0
ENDPOINT = f'endpoint="{CHAT}"'
MARKER = "the MARKER"
REPLY = {
    "id": "chatcmpl-up",
    "object": "chat.completion",
    "created": 7,
    "model": "up",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "Half \ud83d of it.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "look", "arguments": "{}"},
                    }
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
}


def _chunk(**given: object) -> bytes:
    head = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 7, "model": "up"}
    return b"data: " + json.dumps({**head, **given}).encode() + b"\r\n\r\n"


def _piece(text: str, reason: str | None = None) -> bytes:
    delta = {"role": "assistant", "content": text}
    return _chunk(choices=[{"index": 0, "delta": delta, "finish_reason": reason}])


EVENTS = [
    b": a comment\r\n\r\n",
    _piece("One "),
    _piece("two.", "stop"),
    _chunk(choices=[], usage={"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}),
    b"data: [DONE]\r\n\r\n",
]
STREAM = b"".join(EVENTS)
"""A whole stream, byte for byte."""


@dataclass
class FakeUpstream:
    """What the server was asked, and what it did."""

    url: str = ""
    requests: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)
    """Body and headers of each request."""
    has_begun: threading.Event = field(default_factory=threading.Event)
    """A request that is never answered has come."""
    was_left: threading.Event = field(default_factory=threading.Event)
    """Such a request was taken back."""

    @property
    def body(self) -> bytes:
        """The newest request's."""
        return self.requests[-1][0]

    @property
    def headers(self) -> dict[str, str]:
        """The newest request's."""
        return self.requests[-1][1]

    async def chat(self, request: Request) -> Response:
        """Answer by the model's name, or with the plain reply."""
        body = await request.body()
        self.requests.append((body, dict(request.headers)))
        asked = json.loads(body)
        if asked.get("model") in BY_NAME:
            return await BY_NAME[asked["model"]](self, request)
        if asked.get("stream"):
            return _stream(_cut())
        return Response(
            json.dumps(REPLY),
            media_type="application/json",
            headers={"x-request-id": "up-1", "x-demur-route": "forged"},
        )

    async def models(self, request: Request) -> Response:
        """List one model."""
        self.requests.append((b"", dict(request.headers)))
        return JSONResponse({"object": "list", "data": [{"id": "up", "object": "model"}]})

    async def silence(self, request: Request) -> Response:
        """Answer nothing until the client leaves."""
        self.has_begun.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.was_left.set()
        return Response()

    async def endless(self, request: Request) -> Response:
        """Send events until the client leaves."""

        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield _piece("on ")
                    await asyncio.sleep(0.01)
            finally:
                self.was_left.set()

        return _stream(events())


async def _busy(_: FakeUpstream, __: Request) -> Response:
    error = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit"}}
    return JSONResponse(error, 429, headers={"Retry-After": "17"})


async def _moved(_: FakeUpstream, __: Request) -> Response:
    return Response(status_code=307, headers={"location": "http://127.0.0.1:9/v1"})


async def _broken(_: FakeUpstream, __: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        yield EVENTS[1]
        yield EVENTS[2][:30]
        raise ConnectionResetError

    return _stream(events())


async def _unlike(_: FakeUpstream, __: Request) -> Response:
    return Response(b"<p>no JSON</p>", media_type="text/html")


async def _headers(_: FakeUpstream, __: Request) -> Response:
    response = JSONResponse({"choices": "none", "usage": {"prompt_tokens": "many"}})
    response.raw_headers += [
        (b"set-cookie", b"a=b"),
        (b"connection", b"x-private"),
        (b"x-private", b"1"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
    ]
    return response


BY_NAME: dict[str, Callable[[FakeUpstream, Request], Awaitable[Response]]] = {
    "silent": FakeUpstream.silence,
    "endless": FakeUpstream.endless,
    "busy": _busy,
    "moved": _moved,
    "broken": _broken,
    "unlike": _unlike,
    "headers": _headers,
}


async def _cut() -> AsyncIterator[bytes]:
    """Yield the stream in pieces that do not end where events end."""
    for start in range(0, len(STREAM), 37):
        yield STREAM[start : start + 37]


def _stream(events: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


@contextmanager
def fake_upstream() -> Iterator[FakeUpstream]:
    """Serve the pretend server on a free port; its url ends in /v1."""
    found = FakeUpstream()
    app = Starlette(
        routes=[
            Route(CHAT, found.chat, methods=["POST"]),
            Route("/v1/models", found.models),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    waiting = threading.Event()
    while not server.started:
        waiting.wait(0.01)
    try:
        found.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        yield found
    finally:
        server.should_exit = True
        thread.join(STARTED_WITHIN_S)


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    """Return a request's body; texts are user turns."""
    turns = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return {"model": "up", "messages": turns, **fields}


@contextmanager
def guarding(
    url: str, *, guard: Guard | None = None, options: dict[str, Any] | None = None, **given: Any
) -> Iterator[Running]:
    """Serve a guard before an upstream."""
    app = app_of(guard or marker_guard(), upstream={"url": url, **(options or {})}, **given)
    with running(app) as found:
        yield found


def audit_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of requests of an audit log."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "request"]


def wait_for_metric(server: Running, line: str) -> None:
    """Ask for the metrics until a line is among them."""
    for _ in range(500):
        if line in server.get("/metrics").text:
            return
    pytest.fail(f"no {line} in the metrics")
