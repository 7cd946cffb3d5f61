"""Runs a chat's exchanges through the scheduler, and says what became of them.

All replies of one request are drawn from the same prompt. The answer begins when the first of them
has been decided on: until then nothing is sent, not even a header.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from demur.core.errors import DataError
from demur.core.results import ERROR, Token
from demur.core.types import Chat, Sampling
from demur.guard.exchange import Exchange
from demur.serving.audit import AuditRecord
from demur.serving.errors import ApiError
from demur.serving.records import BLOCK, MODERATIONS, record_of
from demur.serving.scheduler import OverloadedError
from demur.serving.service import Service
from demur.serving.verdicts import GuardReport, report

log = logging.getLogger(__name__)

ABANDONED = "abandoned"
"""What the audit log says of a reply whose client left, or that took too long."""


@dataclass(frozen=True)
class Call:
    """What is known of a request beside its chat."""

    endpoint: str
    """For metrics and the audit log."""
    id: str
    """Each exchange has one of its own, made of it."""
    identifier: str | None = None
    """What the client calls its user."""
    unscanned: tuple[str, ...] = ()
    """Places of the request that no detector can read."""


@dataclass
class Answer:
    """The replies to one chat, while they come."""

    service: Service
    call: "Call"
    exchanges: list[Exchange] = field(default_factory=list)
    abandoned: threading.Event = field(default_factory=threading.Event)
    _queued: set[int] = field(default_factory=set)
    """Places of the exchanges that the scheduler has taken."""
    _recorded: set[int] = field(default_factory=set)
    """Places of the exchanges that were counted and recorded."""
    _streams: list[AsyncIterator[Token]] = field(default_factory=list)
    _first: Token | None = None

    @classmethod
    async def begin(
        cls,
        service: Service,
        chat: Chat,
        sampling: Sampling,
        *,
        call: Call,
        n: int = 1,
        wants_logprobs: bool = False,
    ) -> Self:
        """Render a chat, queue its exchanges, and wait until the first is decided on.

        Args:
            service: Whose guard answers.
            chat: What to answer.
            sampling: How the replies are drawn.
            call: Names the request.
            n: Number of replies.
            wants_logprobs: Of their tokens.

        Raises:
            ApiError: The chat cannot be rendered or scored, was blocked, or the server has too much
                to do.
        """
        await service.records.require_writable()
        answer = cls(service, call)
        await answer.render(chat, sampling, n=n, wants_logprobs=wants_logprobs)
        await answer.settle()
        return answer

    async def render(
        self, chat: Chat, sampling: Sampling, *, n: int = 1, wants_logprobs: bool = False
    ) -> None:
        """Open an exchange for each of the `n` replies to a chat; one that fails is an error."""
        loop = asyncio.get_running_loop()
        self.exchanges = [
            await loop.run_in_executor(
                self.service.renderer,
                partial(
                    self.service.guard.open,
                    chat,
                    sampling,
                    request_id=f"{self.call.id}-{number}",
                    draw_id=str(number),
                    is_abandoned=self.abandoned.is_set,
                    wants_logprobs=wants_logprobs,
                ),
            )
            for number in range(n)
        ]

    async def settle(self) -> None:
        """Decide, and let go of everything if there is to be no reply.

        Raises:
            ApiError: What is sent in its place.
        """
        try:
            await self.decide()
            await self.require_answerable()
        except BaseException:
            self.close()
            raise

    async def decide(self) -> None:
        """Queue the exchanges, and wait for the first one's first token, or its end.

        Raises:
            ApiError: The server has too much to do.
        """
        self._streams = [self._stream(number) for number in range(len(self.exchanges))]
        self._first = await anext(self._streams[0], None)

    async def _stream(self, number: int) -> AsyncIterator[Token]:
        """Queue an exchange and yield its tokens.

        Raises:
            ApiError: 429, if the server has too much to do.
        """
        self._queued.add(number)
        try:
            async for token in self.service.scheduler.tokens(self.exchanges[number]):
                yield token
        except OverloadedError as error:
            self._queued.discard(number)
            raise overloaded(error, self.service) from error

    async def require_answerable(self) -> None:
        """Raise what is sent in place of a reply, if there is to be none.

        Raises:
            ApiError: The chat cannot be rendered or scored, or was blocked.
        """
        first = self.exchanges[0]
        if first.route == ERROR:
            await self._require_success(0)
        if first.route == BLOCK and self.call.endpoint != MODERATIONS:
            async for _ in self._streams[0]:
                pass
            first.tokens.clear()  # nobody is sent them
            await self._finish(0)
            raise blocked(self.report())

    async def tokens(self, number: int) -> AsyncIterator[Token]:
        """Yield a reply's tokens; afterwards its exchange is complete, counted and recorded.

        Raises:
            ApiError: The reply failed half way, or the server has too much to do.
        """
        if number == 0 and self._first is not None:
            yield self._first
        async for token in self._streams[number]:
            yield token
        await self._require_success(number)
        await self._finish(number)

    async def _require_success(self, number: int) -> None:
        """Raise what went wrong with an exchange.

        Raises:
            ApiError: 400 for a chat that cannot be rendered, 503 for what the server failed at.
        """
        exchange = self.exchanges[number]
        if exchange.route != ERROR:
            return
        await self._finish(number)
        failure = exchange.failure
        if isinstance(failure, DataError) and exchange.request is None:
            code = "context_length_exceeded" if "tokens" in str(failure) else "invalid_prompt"
            raise ApiError(400, str(failure), param="messages", code=code)
        raise not_answered(exchange.id)

    def report(self) -> GuardReport:
        """Return what the answer says of the guard so far; the prompt is the same for all."""
        return report(self.exchanges, self.service.guard, unscanned=self.call.unscanned)

    def let_go(self) -> None:
        """Draw nothing more, and leave it to others to count and record the exchanges."""
        self.abandoned.set()
        self._recorded.update(range(len(self.exchanges)))

    def close(self) -> None:
        """Let go of replies that are not complete, and record those that had been queued."""
        self.abandoned.set()
        for number in self._queued - self._recorded:
            self._recorded.add(number)
            self.service.do_later(self._record_abandoned(number))

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt as the model reads it."""
        request = self.exchanges[0].request
        return 0 if request is None else len(request.prompt)

    async def _finish(self, number: int) -> None:
        """Count and record an exchange that is complete.

        Raises:
            ApiError: 503, if the audit log cannot be written and nothing is answered without it.
        """
        if number in self._recorded:
            return
        self._recorded.add(number)
        exchange = self.exchanges[number]
        self.service.metrics.count(
            self.call.endpoint, exchange.reply(), num_prompt_tokens=self.num_prompt_tokens
        )
        _log_failure(exchange)
        await self.service.records.write(self._record_of(exchange))

    async def _record_abandoned(self, number: int) -> None:
        record = self._record_of(self.exchanges[number])
        try:
            await self.service.records.write(replace(record, action="error", error=ABANDONED))
        except ApiError:  # told to the next client
            return

    def _record_of(self, exchange: Exchange) -> AuditRecord:
        return record_of(
            exchange,
            self.service.guard,
            endpoint=self.call.endpoint,
            model=self.service.model_name,
            identifier=self.call.identifier,
            unscanned=self.call.unscanned,
        )


def _log_failure(exchange: Exchange) -> None:
    """Tell the operator why there is no answer or no score; the client is not told."""
    if exchange.request is None:
        return
    errors = [verdict.error for verdict in exchange.verdicts if verdict.error is not None]
    why = str(exchange.failure or "; ".join(errors))
    if why:
        log.error("%s: %s", exchange.id, why)


def overloaded(error: OverloadedError, service: Service) -> ApiError:
    """Return the answer to a request for which there is no room."""
    return ApiError(
        429,
        str(error),
        type="rate_limit_error",
        code="overloaded",
        headers={"Retry-After": str(service.settings.limits.retry_after_s)},
    )


def not_answered(id: str) -> ApiError:
    """Return the answer to a prompt that the server failed at; its log says why."""
    return ApiError(
        503,
        f"the prompt could not be answered safely: the server's log says why of {id}",
        type="server_error",
        code="not_answered",
    )


def blocked(found: GuardReport) -> ApiError:
    """Return the answer to a prompt that is blocked."""
    return ApiError(
        400,
        "the prompt was flagged, and this server does not answer flagged prompts",
        param="messages",
        code="content_filter",
        headers=found.headers,
        extra={"demur": found.model_dump()},
    )
