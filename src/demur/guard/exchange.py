"""One request on its way through an engine: its events become tokens and, at the end, a reply.

An exchange fails closed: as long as nobody decided on it, its route is `error` and none of its
tokens is shown.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from demur.core.errors import DataError, DemurError
from demur.core.interventions import Intervention, MidReply, UseAdapter
from demur.core.protocols import Done, Engine, Event, Request, Scored, Switched, TokenOut, Watched
from demur.core.results import (
    ERROR,
    PASS,
    STOPPED,
    SWITCHED,
    Reply,
    Timings,
    Token,
    Verdict,
)
from demur.core.types import Chat, Prompt, Sampling
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


def turned_route(intervention: MidReply) -> str:
    """Return the route of a reply that was flagged."""
    return SWITCHED if isinstance(intervention, UseAdapter) else STOPPED


@dataclass
class Exchange:
    """One request with what came of it so far."""

    id: str
    detectors: Sequence[CalibratedDetector] = ()
    """Those that must judge the prompt."""
    raises: bool = False
    """`reply` raises what went wrong, rather than reporting it."""
    route: str = ERROR
    would_route: str | None = None
    """Where the prompt would have gone, of a guard that only observes."""
    request: Request | None = None
    """None if the chat could not be rendered."""
    verdicts: tuple[Verdict, ...] = ()
    reply_verdict: Verdict | None = None
    """On the reply so far, by a detector that watches it."""
    num_scanned: int = 0
    """Tokens of the reply that it has judged."""
    hold_tokens: int = 0
    """Tokens that are held back, see `ReplyMonitor`."""
    awaited: Intervention | None = None
    """Decided on, but not confirmed by the engine yet: until then no token is shown."""
    failure: DemurError | None = None
    finish_reason: str | None = None
    """None while the engine is at work."""
    tokens: list[Token] = field(default_factory=list)
    """Those that were shown."""
    held: deque[Token] = field(default_factory=deque)
    """Drawn, and not shown yet."""
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    ended_at: float = 0.0
    scored: Scored | None = None

    @property
    def is_turned(self) -> bool:
        """The reply itself was flagged, and something has become of it."""
        return self.route in (STOPPED, SWITCHED)

    @property
    def is_scored(self) -> bool:
        """Every detector has judged the prompt."""
        return bool(self.verdicts) and all(verdict.error is None for verdict in self.verdicts)

    def rendered(self, engine: Engine, chat: ChatLike) -> Prompt | None:
        """Return the chat as the engine's model will read it; None, and an error, if that fails."""
        try:
            return engine.render(as_chat(chat))
        except DemurError as error:
            self.fail(error)
        except Exception as error:
            message = f"the chat could not be rendered: {type(error).__name__}: {error}"
            self.fail(DemurError(message), cause=error)
        return None

    def take(self, event: Event) -> list[Token]:
        """Take note of an event; return the tokens that may be shown from now on."""
        if isinstance(event, Scored):
            self.scored = event
        elif isinstance(event, Done):
            self._finish(event)
        elif isinstance(event, Switched) and event.intervention == self.awaited:
            self.awaited = None
        elif isinstance(event, Watched):
            self.num_scanned = event.num_tokens
        elif isinstance(event, TokenOut) and self.awaited is not None:
            self.fail(DemurError("the engine went on without the intervention"))
        elif isinstance(event, TokenOut) and self.route != ERROR:
            self.held.append(Token(event.token_id, event.text, self.route, event.logprob))
        return self._released()

    def _released(self) -> list[Token]:
        """Move tokens that need be held back no longer to those that are shown."""
        if self.finish_reason in (ERROR, "ended", "abandoned"):
            self.held.clear()
        num_free = len(self.held)
        if self.route == SWITCHED and self.awaited is not None:
            num_free = 0
        elif self.hold_tokens and self.finish_reason is None and not self.is_turned:
            num_free = self.num_scanned - self.hold_tokens + 1 - len(self.tokens)
        released = [self.held.popleft() for _ in range(max(0, num_free))]
        if released and self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.tokens += released
        return released

    def turn(self, intervention: MidReply) -> None:
        """Take note of what becomes of a flagged reply.

        One that ends, or makes room for a text, never shows what of it was held back; one that goes
        on under an adapter does.
        """
        if not isinstance(intervention, UseAdapter):
            self.held.clear()
        self.route, self.awaited = turned_route(intervention), intervention

    def _finish(self, done: Done) -> None:
        self.ended_at = time.perf_counter()
        self.finish_reason = done.reason
        if done.reason == "error":
            self.fail(DemurError(f"the engine failed: {done.error}"))
        elif self.route == ERROR:
            self.fail(DemurError("the engine went on without asking for a decision"))
        elif self.awaited is not None and done.reason != "scored":
            self.fail(DemurError("the engine went on without the intervention"))

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
            forged = self.request is not None and self.request.prompt.has_forged_markers
            self.verdicts = tuple(
                d.unscored(str(failure), has_forged_markers=forged) for d in self.detectors
            )

    def fail_by(self, error: Exception) -> None:
        """End as an error of the engine."""
        self.fail(DemurError(f"the engine failed: {type(error).__name__}: {error}"), cause=error)

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
            would_route=self.would_route,
            reply_verdict=self.reply_verdict,
            num_scanned=self.num_scanned,
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
        for event in _until_failure(engine.run([exchange.request]), exchange.fail_by):
            yield from exchange.take(event)
    return exchange.reply()


def _until_failure(events: Iterator[Event], report: Callable[[Exception], None]) -> Iterator[Event]:
    """Yield an engine's events; its own failure is reported and ends them."""
    while True:
        try:
            event = next(events)
        except StopIteration:
            return
        except Exception as error:
            report(error)
            return
        yield event


def replies_of(engine: Engine, exchanges: Iterable[Exchange]) -> Iterator[Reply]:
    """Run exchanges together; yield their replies in their order, each as soon as possible.

    Raises:
        DataError: Two exchanges that run at the same time have the same id.
        DemurError: What went wrong with the next reply, if its exchange `raises`.
    """
    queue = _Queue(exchanges)
    for event in _until_failure(engine.run(queue.requests()), queue.fail_all):
        queue.take(event)
        yield from queue.complete()
    yield from queue.rest()


class _Queue:
    """Exchanges on their way through one run of an engine, in order."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self._waiting = iter(exchanges)
        self._pending: deque[Exchange] = deque()
        self._running: dict[str, Exchange] = {}
        self._refusal: Exception | None = None

    def requests(self) -> Iterator[Request]:
        """Yield the requests of the exchanges; those that could not be rendered have none."""
        try:
            for exchange in self._waiting:
                if exchange.request is not None and exchange.id in self._running:
                    raise DataError(f"request id {exchange.id!r} is in use: give each its own")
                self._pending.append(exchange)
                if exchange.request is not None:
                    self._running[exchange.id] = exchange
                    yield exchange.request
        except Exception as error:  # the caller's, although it passes through the engine
            self._refusal = error
            raise

    def take(self, event: Event) -> None:
        """Hand an event to its exchange."""
        self._running[event.id].take(event)
        if isinstance(event, Done):
            del self._running[event.id]

    def fail_all(self, error: Exception) -> None:
        """End what is under way or waiting as an error of the engine."""
        if error is self._refusal:
            raise error
        self._pending.extend(self._waiting)
        for exchange in self._pending:
            if exchange.finish_reason is None:
                exchange.fail_by(error)

    def complete(self) -> Iterator[Reply]:
        """Yield the replies that are complete, as far as those before them are."""
        while self._pending and self._pending[0].finish_reason is not None:
            yield self._pending.popleft().reply()

    def rest(self) -> Iterator[Reply]:
        """Yield the replies that are left when the engine has stopped."""
        while self._pending:
            yield self._pending.popleft().reply()


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
    prompt = exchange.rendered(engine, chat)
    if prompt is not None:
        exchange.request = Request(request_id, prompt, sampling)
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
