"""Tells clients and Prometheus what became of the prompts of a request.

A response is held back until its prompts are judged, so that its headers can say so, and an error
can take the place of what was blocked or could not be scored.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from demur.core.results import ERROR, PASS, PASS_UNSCORED
from demur.integrations.vllm_serve.asking import ASKED, Asked
from demur.serving.answers import blocked, not_answered
from demur.serving.errors import ApiError
from demur.serving.records import BLOCK
from demur.serving.verdicts import GuardReport

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
EVENTS = b"text/event-stream"
PASSING = (PASS, PASS_UNSCORED)


class Reports(Protocol):
    """Where reports on prompts are had; see `desk.Desk`."""

    async def reports(
        self, ids: Sequence[str], *, endpoint: str | None = None
    ) -> dict[str, GuardReport]:
        """Fetch and count the reports on prompts; those that are not judged yet are left out."""

    def count_bypassed(self, number: int) -> None:
        """Count prompts that did not read the prefix cache."""


class Exchange:
    """The prompts of one request, and the reports on them.

    Args:
        desk: Has the reports.
        scope: ASGI's, for the name of the endpoint.
    """

    def __init__(self, desk: Reports, scope: Message) -> None:
        self.asked = Asked()
        self.reports: dict[str, GuardReport] = {}
        self._desk = desk
        self._scope = scope

    @property
    def is_judged(self) -> bool:
        """All prompts were judged."""
        return all(id in self.reports for id in self.asked.ids)

    async def settle(self) -> None:
        """Fetch reports that are still to come, and count them."""
        waiting = [id for id in self.asked.ids if id not in self.reports]
        endpoint = str(getattr(self._scope.get("route"), "path", "unknown"))
        self.reports |= await self._desk.reports(waiting, endpoint=endpoint)

    async def close(self) -> None:
        """Count what is left."""
        self._desk.count_bypassed(self.asked.num_cache_bypassed)
        await self.settle()

    def refusal(self, status: int) -> ApiError | None:
        """Return what is sent in place of the response; None if there is nothing against it.

        A fixed reply may not obey the grammar that a request asked for: vLLM then fails at it.

        Args:
            status: Of the response.
        """
        for id, report in self.reports.items():
            if report.route == ERROR:
                return not_answered(id)
            if report.route == BLOCK or (status >= 500 and report.route not in PASSING):
                return blocked(report)
        return None

    @property
    def headers(self) -> dict[str, str]:
        """What headers say: of the first flagged prompt, or else of the first."""
        found = sorted(self.reports.values(), key=lambda report: not report.flagged)
        return found[0].headers if found else {}


class Held:
    """A response that waits for the reports on its prompts.

    Args:
        send: ASGI's.
        exchange: Of the request.
    """

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self._messages: list[Message] = []
        self._is_open = False
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        """Take what the application sends."""
        if self._is_replaced:
            return
        if self._is_open:
            await self._send(message)
            return
        self._messages.append(message)
        if message["type"] == "http.response.start":
            return
        await self._exchange.settle()
        is_last = not message.get("more_body", False)
        if is_last or (self._exchange.is_judged and not self._may_still_ask()):
            await self._release()

    def _may_still_ask(self) -> bool:
        """Tell whether a stream has begun before anything was asked of the engine."""
        headers = dict(self._messages[0].get("headers", ()))
        return not self._exchange.asked.ids and headers.get(b"content-type", b"").startswith(EVENTS)

    async def _release(self) -> None:
        messages, self._messages, self._is_open = self._messages, [], True
        refusal = self._exchange.refusal(messages[0].get("status", 200))
        if refusal is not None:
            self._is_replaced = True
            messages = _error(refusal)
        else:
            ours = _encoded(self._exchange.headers)
            messages[0]["headers"] = [*messages[0].get("headers", ()), *ours]
        for message in messages:
            await self._send(message)


def _error(error: ApiError) -> list[Message]:
    body = json.dumps(error.as_dict()).encode()
    about = {"content-type": "application/json", "content-length": str(len(body))}
    return [
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": _encoded({**about, **error.headers}),
        },
        {"type": "http.response.body", "body": body},
    ]


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class Reporting:
    """ASGI middleware: says of each response what became of its prompts.

    Args:
        app: What it stands around.
        desk: Returns where reports are had, once the engine is there.
    """

    def __init__(self, app: Any, *, desk: Callable[[], Reports]) -> None:
        self._app = app
        self._desk = desk

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = Exchange(self._desk(), scope)
        token = ASKED.set(exchange.asked)
        try:
            held = Held(send, exchange) if scope["type"] == "http" else send
            await self._app(scope, receive, held)
        finally:
            ASKED.reset(token)
            await asyncio.shield(exchange.close())
