"""Passes an upstream's reply on to the client, and counts and records it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import httpx
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from demur.core.results import ERROR
from demur.guard.exchange import Exchange
from demur.serving.answers import ABANDONED, Call
from demur.serving.chat import timed_out
from demur.serving.errors import ApiError
from demur.serving.proxy_headers import Header, response_headers
from demur.serving.records import record_of
from demur.serving.service import Service
from demur.serving.upstream import content_of, upstream_error
from demur.serving.upstream_reply import DONE, Events, UpstreamReply, parsed, payload_of
from demur.serving.verdicts import GuardReport, report

UPSTREAM_ERROR = "upstream_error"
"""What metrics and the audit log call an error that the upstream answers with."""
CLIENT_LEFT = "client_left"
"""What metrics call a stream that nobody reads to its end."""


@dataclass
class Passing:
    """A request that has passed the guard, until the upstream's reply to it is complete."""

    service: Service
    call: Call
    model: str
    """As the client calls it."""
    exchange: Exchange
    """What the guard says."""
    sent_at: float
    """When the request was sent on, in seconds of the performance counter."""
    reply: UpstreamReply = field(default_factory=UpstreamReply)
    is_recorded: bool = False

    def report(self) -> GuardReport:
        """Return what the answer says of the guard."""
        guard = self.service.guard
        return report([self.exchange], guard, unscanned=self.call.unscanned)

    def headers(self, response: httpx.Response) -> list[Header]:
        """Return the upstream's headers and the guard's."""
        ours = {"x-demur-request-id": self.call.id, **self.report().headers}
        return [
            *response_headers(response.headers.raw),
            *((name.encode(), value.encode()) for name, value in ours.items()),
        ]

    async def answer(self, response: httpx.Response) -> Response:
        """Return the upstream's reply: a stream that begins, or all of it, complete and recorded.

        Raises:
            ApiError: The upstream broke off, or the audit log cannot be written.
        """
        kind = response.headers.get("content-type", "")
        if response.is_success and kind.startswith("text/event-stream"):
            return PassedStream(self, response)
        content = await content_of(response)
        headers = self.headers(response)
        body = parsed(content)
        self.reply.take(body)
        if response.is_success and isinstance(body, dict):
            content = json.dumps({**body, "demur": self.report().model_dump()}).encode()
        if not response.is_success:
            self.service.metrics.count_error(self.call.endpoint, UPSTREAM_ERROR)
        await self.finish(error=None if response.is_success else UPSTREAM_ERROR)
        whole = Response(content, response.status_code)
        whole.raw_headers = [*headers, (b"content-length", str(len(content)).encode())]
        return whole

    async def finish(self, *, error: str | None = None) -> None:
        """Count and record the request.

        Args:
            error: Why the reply is not complete; None if it is.

        Raises:
            ApiError: 503, if the audit log cannot be written and nothing is answered without it.
        """
        self.is_recorded = True
        exchange, reply, metrics = self.exchange, self.reply, self.service.metrics
        exchange.ended_at = time.perf_counter()
        exchange.finish_reason = (reply.finish_reason or "stop") if error is None else ERROR
        record = record_of(
            exchange,
            self.service.guard,
            endpoint=self.call.endpoint,
            model=self.model,
            identifier=self.call.identifier,
            unscanned=self.call.unscanned,
        )
        num_prompt_tokens = record.num_prompt_tokens
        if reply.num_prompt_tokens is not None:
            num_prompt_tokens = reply.num_prompt_tokens
        metrics.count(self.call.endpoint, exchange.reply(), num_prompt_tokens=num_prompt_tokens)
        metrics.count_upstream(
            seconds=exchange.ended_at - self.sent_at, num_reply_tokens=reply.num_reply_tokens
        )
        await self.service.records.write(
            replace(
                record,
                action=record.action if error is None else "error",
                error=error,
                num_prompt_tokens=num_prompt_tokens,
                num_reply_tokens=reply.num_reply_tokens,
                reply=reply.text,
            )
        )

    async def give_up(self, error: str) -> None:
        """Count and record a request whose answer nobody gets any more, unless that is done."""
        if self.is_recorded:
            return
        try:
            await self.finish(error=error)
        except ApiError:  # told to the next client
            return


class PassedStream(StreamingResponse):
    """An upstream's stream of events, byte for byte.

    Args:
        passing: The request.
        response: Its events; closed at the end, or when the client leaves.
    """

    def __init__(self, passing: Passing, response: httpx.Response) -> None:
        self._passing, self._upstream = passing, response
        self._sent = self._bytes()
        super().__init__(self._sent, response.status_code)
        self.raw_headers = passing.headers(response)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, and let go of the upstream whatever becomes of the client."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._sent.aclose()
            await self._upstream.aclose()
            if not self._passing.is_recorded:
                service = self._passing.service
                service.metrics.count_error(self._passing.call.endpoint, CLIENT_LEFT)
                service.do_later(self._passing.give_up(ABANDONED))

    async def _bytes(self) -> AsyncGenerator[bytes, None]:
        """Yield the upstream's events; a failure half way is the last one."""
        service, call = self._passing.service, self._passing.call
        try:
            async with asyncio.timeout(service.settings.limits.request_timeout_s):
                async for event in self._events():
                    yield event
            return
        except TimeoutError:
            error = timed_out()
        except httpx.TransportError as failure:
            error = upstream_error(failure)
        except ApiError as failure:
            error = failure
        code = error.body.error.code or ERROR
        service.metrics.count_error(call.endpoint, code)
        await self._passing.give_up(code)
        yield format_sse_event(data_str=error.body.model_dump_json())

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """Yield whole events, so that none is cut short where the upstream breaks off.

        Raises:
            ApiError: The audit log cannot be written.
        """
        passing, events = self._passing, Events()
        async for piece in self._upstream.aiter_raw():
            for event in events.take(piece):
                said = payload_of(event)
                if said != DONE:
                    passing.reply.take(parsed(said))
                    yield event
                    continue
                if passing.service.settings.upstream.report_in_stream:
                    yield self._report()
                await passing.finish()
                yield event
        if not passing.is_recorded:
            await passing.finish()
        if events.rest:
            yield events.rest

    def _report(self) -> bytes:
        """Return a chunk without choices, as the one with the counts of tokens is."""
        chunk = {
            **self._passing.reply.head,
            "object": "chat.completion.chunk",
            "choices": [],
            "demur": self._passing.report().model_dump(),
        }
        return format_sse_event(data_str=json.dumps(chunk))
