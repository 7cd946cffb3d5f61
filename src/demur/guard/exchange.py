"""One request on its way through an engine: its events become tokens and, at the end, a reply.

An exchange fails closed: as long as nobody decided on it, its route is `error` and none of its
tokens is shown.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from demur.core.errors import DataError, DemurError
from demur.core.protocols import Done, Engine, Event, Request, Scored, TokenOut
from demur.core.results import ERROR, PASS, Reply, Timings, Token, Verdict
from demur.core.types import Chat, Sampling
from demur.guard.calibrated import CalibratedDetector

ChatLike = Chat | str | Sequence[Mapping[str, object]]
"""A chat, the text of one user message, or OpenAI-style messages."""


def as_chat(chat: ChatLike) -> Chat:
    """Return the chat that a caller means.

    Raises:
        DataError: It is empty, or a message is not one.
    """
    if isinstance(chat, Chat):
        return chat
    return Chat.from_text(chat) if isinstance(chat, str) else Chat.from_messages(chat)


@dataclass
class Exchange:
    """One request with what came of it so far."""

    id: str
    detectors: Sequence[CalibratedDetector] = ()
    """Those that must judge the prompt."""
    raises: bool = False
    """`reply` raises what went wrong, rather than reporting it."""
    route: str = ERROR
    request: Request | None = None
    """None if the chat could not be rendered."""
    verdicts: tuple[Verdict, ...] = ()
    failure: DemurError | None = None
    finish_reason: str | None = None
    """None while the engine is at work."""
    tokens: list[Token] = field(default_factory=list)
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    ended_at: float = 0.0
    scored: Scored | None = None

    def take(self, event: Event) -> Token | None:
        """Take note of an event; return the token that may be shown, if there is one."""
        if isinstance(event, Scored):
            self.scored = event
        elif isinstance(event, Done):
            self._finish(event)
        elif isinstance(event, TokenOut) and self.route != ERROR:
            if self.first_token_at is None:
                self.first_token_at = time.perf_counter()
            self.tokens.append(Token(event.token_id, event.text, self.route, event.logprob))
            return self.tokens[-1]
        return None

    def _finish(self, done: Done) -> None:
        self.ended_at = time.perf_counter()
        self.finish_reason = done.reason
        if done.reason == "error":
            self.fail(DemurError(f"the engine failed: {done.error}"))
        elif self.route == ERROR:
            self.fail(DemurError("the engine went on without asking for a decision"))

    def fail(self, failure: DemurError, *, cause: Exception | None = None) -> None:
        """End as an error; only the first failure counts, the later ones follow from it."""
        self.ended_at = time.perf_counter()
        self.finish_reason = self.route = ERROR
        if self.failure is not None:
            return
        self.failure = failure
        if cause is not None:
            failure.__cause__ = cause
        if not self.verdicts:
            self.verdicts = tuple(d.unscored(str(failure)) for d in self.detectors)

    def reply(self) -> Reply:
        """Return the whole reply; an error has no text.

        Raises:
            DemurError: What went wrong, if the exchange `raises`.
        """
        if self.finish_reason is None:
            self.fail(DemurError("the engine stopped before the reply was complete"))
        if self.failure is not None and self.raises:
            raise self.failure
        tokens = [] if self.failure else self.tokens
        return Reply(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            route=self.route,
            verdicts=self.verdicts,
            finish_reason=self.finish_reason or ERROR,
            timings=self._timings(),
            error=None if self.failure is None else str(self.failure),
        )

    def _timings(self) -> Timings:
        return Timings(
            prefill_s=self.scored.prefill_s if self.scored else 0.0,
            guard_s=self.scored.guard_s if self.scored else 0.0,
            first_token_s=(self.first_token_at or self.ended_at) - self.started_at,
            total_s=self.ended_at - self.started_at,
        )


def tokens_of(engine: Engine, exchange: Exchange) -> Generator[Token, None, Reply]:
    """Run one exchange; yield its tokens and return its reply.

    Raises:
        DemurError: What went wrong, if the exchange `raises`.
    """
    if exchange.request is not None:
        try:
            for event in engine.run([exchange.request]):
                token = exchange.take(event)
                if token is not None:
                    yield token
        except Exception as error:
            message = f"the engine failed: {type(error).__name__}: {error}"
            exchange.fail(DemurError(message), cause=error)
    return exchange.reply()


def replies_of(engine: Engine, exchanges: Iterable[Exchange]) -> Iterator[Reply]:
    """Run exchanges together; yield their replies in their order, each as soon as possible.

    Raises:
        DataError: Two exchanges that run at the same time have the same id.
        DemurError: What went wrong with the next reply, if its exchange `raises`.
    """
    pending: deque[Exchange] = deque()
    running: dict[str, Exchange] = {}

    def requests() -> Iterator[Request]:
        for exchange in exchanges:
            if exchange.id in running:
                raise DataError(f"request id {exchange.id!r} is in use: give each its own")
            pending.append(exchange)
            if exchange.request is not None:
                running[exchange.id] = exchange
                yield exchange.request

    for event in engine.run(requests()):
        exchange = running[event.id]
        exchange.take(event)
        if isinstance(event, Done):
            del running[event.id]
        while pending and pending[0].finish_reason is not None:
            yield pending.popleft().reply()
    for exchange in pending:
        yield exchange.reply()


def plain_replies(
    engine: Engine,
    chats: Iterable[ChatLike],
    sampling: Sampling,
    *,
    request_ids: Iterable[str] | None = None,
) -> Iterator[Reply]:
    """Answer chats without a guard, to compare with; routes are `pass`, or `error`.

    Args:
        engine: Runs the model.
        chats: Taken lazily.
        sampling: How the replies are drawn.
        request_ids: One a chat; None counts from 0.

    Yields:
        A reply without verdicts for each chat, in order.
    """
    return replies_of(
        engine,
        (
            plain_exchange(engine, chat, sampling, request_id=request_id)
            for chat, request_id in with_ids(chats, request_ids)
        ),
    )


def plain_exchange(
    engine: Engine, chat: ChatLike, sampling: Sampling, *, request_id: str
) -> Exchange:
    """Open an unguarded exchange."""
    exchange = Exchange(request_id, route=PASS)
    try:
        exchange.request = Request(request_id, engine.render(as_chat(chat)), sampling)
    except DemurError as error:
        exchange.fail(error)
    return exchange


def with_ids(
    chats: Iterable[ChatLike], request_ids: Iterable[str] | None
) -> Iterator[tuple[ChatLike, str]]:
    """Pair chats with their ids, or with numbers from 0.

    Raises:
        DataError: There are fewer ids than chats.
    """
    ids = map(str, count()) if request_ids is None else iter(request_ids)
    for chat in chats:
        request_id = next(ids, None)
        if request_id is None:
            raise DataError("there are more chats than request_ids: give one id a chat")
        yield chat, request_id
