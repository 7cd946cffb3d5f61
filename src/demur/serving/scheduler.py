"""Runs an engine in a thread of its own, so that concurrent requests share its forward passes.

Coroutines hand in exchanges and get their tokens as they come. The engine asks for new requests
between its steps; when nothing is under way, its thread sleeps.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from demur.core.errors import DemurError
from demur.core.protocols import Done, Engine, Event, Request
from demur.core.results import Token
from demur.guard.exchange import Exchange

log = logging.getLogger(__name__)


class OverloadedError(DemurError, RuntimeError):
    """As many requests wait as may, or the server is about to stop."""


@dataclass(eq=False)
class Job:
    """An exchange on its way, and where its tokens go."""

    exchange: Exchange
    loop: asyncio.AbstractEventLoop
    arrived: "asyncio.Queue[Token | None]" = field(default_factory=asyncio.Queue)
    """Tokens that may be shown; None is the end."""

    def put(self, token: Token | None) -> None:
        """Hand a token over to the event loop; a loop that has ended takes nothing any more."""
        try:
            self.loop.call_soon_threadsafe(self.arrived.put_nowait, token)
        except RuntimeError:
            log.debug("the event loop has ended before exchange %s", self.exchange.id)


class Scheduler:
    """A queue of exchanges, and the thread that runs an engine on them.

    Args:
        engine: Runs the requests; nothing else may run it meanwhile.
        max_waiting: Most exchanges that wait for the engine, over 0.
    """

    def __init__(self, engine: Engine, *, max_waiting: int) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._running: dict[str, Job] = {}
        self._changed = threading.Condition()
        """Held to change what waits, and notified when that is more, or when nothing will come."""
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="demur-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Exchanges that the engine has not taken yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Exchanges that the engine is at work on."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """The engine's thread still takes exchanges."""
        return self._thread.is_alive() and not self._is_closing

    async def tokens(self, exchange: Exchange) -> AsyncIterator[Token]:
        """Run an exchange and yield its tokens; after the last one the exchange is complete.

        Raises:
            OverloadedError: Too many wait, or the server is about to stop.
        """
        if exchange.request is None:
            return
        job = Job(exchange, asyncio.get_running_loop())
        self._queue(job)
        try:
            while (token := await job.arrived.get()) is not None:
                yield token
        finally:
            self._withdraw(job)

    def _queue(self, job: Job) -> None:
        with self._changed:
            if self._is_closing or self.num_waiting >= self._max_waiting:
                has_many = f"has {self._max_waiting} requests waiting"
                why = "is stopping" if self._is_closing else has_many
                raise OverloadedError(f"the server {why}: try again later")
            self._waiting.append(job)
            self._changed.notify()

    def _withdraw(self, job: Job) -> None:
        """Make room in the queue if nobody waits for a job any more."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, *, timeout_s: float) -> bool:
        """Take no more exchanges, let those under way end, and stop the thread.

        Returns:
            Whether all of them ended in time.
        """
        self._take_no_more()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _take_no_more(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def _work(self) -> None:
        """Run the engine until the scheduler closes; its failure ends what is under way."""
        early = DemurError("the engine stopped before the reply was complete")
        try:
            while self._is_needed():
                try:
                    for event in self._engine.run(self._requests()):
                        self._deliver(event)
                except Exception as error:
                    log.exception("the engine failed")
                    self._fail(error)
                else:
                    self._fail(early)
        finally:  # also where the engine ends its thread: nobody is left waiting
            self._take_no_more()
            while self._running or self._waiting:
                self._fail(early)

    def _is_needed(self) -> bool:
        """Wait for a job; say whether there is one, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return bool(self._waiting)

    def _requests(self) -> Iterator[Request | None]:
        """Yield requests as they come; wait only where nothing is under way."""
        while self._running or self._is_needed():
            job = self._next()
            yield None if job is None else job.exchange.request

    def _next(self) -> Job | None:
        """Move a job from those that wait to those that run, if one waits."""
        with self._changed:
            job = self._waiting.popleft() if self._waiting else None
            if job is not None:
                self._running[job.exchange.id] = job
            return job

    def _deliver(self, event: Event) -> None:
        job = self._running[event.id]
        for token in job.exchange.take(event):
            job.put(token)
        if isinstance(event, Done):
            del self._running[event.id]
            job.put(None)

    def _fail(self, error: Exception) -> None:
        """End what is under way; of an engine that took nothing, what it should have taken."""
        if not self._running:
            self._next()
        for job in self._running.values():
            job.exchange.fail_by(error)
            job.put(None)
        self._running.clear()
