"""Runs an engine in a thread of its own, so that concurrent requests share its forward passes.

Coroutines hand in exchanges and get their tokens as they come. The engine asks for new requests
between its steps; when nothing is under way, its thread sleeps.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from demur.core.errors import DemurError
from demur.core.protocols import Done, Engine, Event, Request
from demur.core.results import Token
from demur.guard.exchange import Exchange

log = logging.getLogger(__name__)


class OverloadedError(DemurError, RuntimeError):
    """As many requests wait as may, or the server is about to stop."""


@dataclass
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
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._running: dict[str, Job] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="demur-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Exchanges that the engine has not taken yet."""
        return self._waiting.qsize()

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
        if self._is_closing or self.num_waiting >= self._max_waiting:
            why = "is stopping" if self._is_closing else f"has {self._max_waiting} requests waiting"
            raise OverloadedError(f"the server {why}: try again later")
        job = Job(exchange, asyncio.get_running_loop())
        self._waiting.put(job)
        while (token := await job.arrived.get()) is not None:
            yield token

    def close(self, *, timeout_s: float) -> bool:
        """Take no more exchanges, let those under way end, and stop the thread.

        Returns:
            Whether all of them ended in time.
        """
        self._is_closing = True
        self._waiting.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        """Run the engine until the scheduler closes; its failure ends what is under way."""
        while not (self._is_closing and self._waiting.empty()):
            try:
                for event in self._engine.run(self._requests()):
                    self._deliver(event)
            except Exception as error:
                log.exception("the engine failed")
                self._fail_running(error)
            else:
                self._fail_running(DemurError("the engine stopped before the reply was complete"))

    def _requests(self) -> Iterator[Request | None]:
        """Yield requests as they come; wait only where nothing is under way."""
        while not (self._is_closing and self._waiting.empty()):
            try:
                job = self._waiting.get(block=not self._running)
            except queue.Empty:
                yield None
                continue
            if job is None:  # only to wake up
                continue
            request = job.exchange.request
            assert request is not None, "an exchange without a request is not run"
            self._running[request.id] = job
            yield request

    def _deliver(self, event: Event) -> None:
        job = self._running[event.id]
        for token in job.exchange.take(event):
            job.put(token)
        if isinstance(event, Done):
            del self._running[event.id]
            job.put(None)

    def _fail_running(self, error: Exception) -> None:
        for job in self._running.values():
            job.exchange.fail_by(error)
            job.put(None)
        self._running.clear()
