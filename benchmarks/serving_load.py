"""The clients of `benchmarks.serving`: asyncio and httpx in one process, apart from the server's.

Each of a number of clients sends one request after the other and reads its stream to the end. While
they run, what comes is only stored, with the time of its arrival; it is parsed afterwards.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import httpx
import numpy as np

Kind = Literal["ordinary", "flagged", "malformed", "vanishing"]

JSON = {"content-type": "application/json"}
TIMEOUT_S = 120.0
"""Longest silence of a server; one that is longer is an error, and counts as a lost reply."""


@dataclass(frozen=True)
class Question:
    """One request."""

    kind: Kind
    number: int
    """Place of the prompt, or of the malformed body, among its like."""
    content: bytes
    expected_status: int = 200
    num_read: int | None = None
    """Pieces of the stream after which the client leaves; None reads all."""


@dataclass
class Sent:
    """A request, and all that came back."""

    question: Question
    sent_at: float
    status: int = 0
    """0 if no answer began."""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """With the time of each."""
    is_complete: bool = False
    """The answer's last byte was read."""
    error: str = ""

    @property
    def content(self) -> bytes:
        """The whole answer."""
        return b"".join(piece for _, piece in self.pieces)


@dataclass(frozen=True)
class Streamed:
    """What a stream of events says."""

    ids: frozenset[str]
    """Of its chunks: one, if none has strayed in."""
    texts: tuple[str, ...]
    """One a token, as it was sent."""
    times: tuple[float, ...]
    """When each of them came."""
    finish_reason: str | None
    route: str | None
    """As the last chunk says; None without a guard's report."""
    num_declared: int | None
    """Tokens, as the server counts them at the end."""
    has_ended: bool
    """`[DONE]` was the last event."""

    @property
    def text(self) -> str:
        """The reply."""
        return "".join(self.texts)

    @classmethod
    def of(cls, sent: Sent) -> "Streamed":
        """Parse an answer; an event that is no chunk, such as an error, has no id."""
        ids, texts, times = set(), [], []
        reason, route, declared, last = None, None, None, b""
        for at, event in _events(sent.pieces):
            last = event
            if event == b"[DONE]":
                continue
            chunk: Mapping[str, Any] = json.loads(event)
            ids.add(str(chunk.get("id", "")))
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                reason = choice.get("finish_reason") or reason
                if delta.get("content") is not None and not delta.get("role"):
                    texts.append(str(delta["content"]))
                    times.append(at)
            route = (chunk.get("demur") or {}).get("route", route)
            declared = (chunk.get("usage") or {}).get("completion_tokens", declared)
        return cls(
            ids=frozenset(ids),
            texts=tuple(texts),
            times=tuple(times),
            finish_reason=reason,
            route=route,
            num_declared=declared,
            has_ended=last == b"[DONE]",
        )


def _events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the payload of each event that is complete, and when its end came."""
    rest = b""
    for at, piece in pieces:
        *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                yield at, event.removeprefix(b"data:").strip()


@dataclass(frozen=True)
class Mix:
    """Draws requests: shares of each kind, the rest is ordinary."""

    ordinary: Sequence[bytes]
    """Bodies."""
    flagged: Sequence[bytes] = ()
    malformed: Sequence[tuple[bytes, int]] = ()
    """Bodies, each with the status that it must get."""
    share_flagged: float = 0.0
    share_malformed: float = 0.0
    share_vanishing: float = 0.0
    most_read: int = 12
    """Pieces that a client reads at most before it vanishes."""

    def questions(self, *, seed: int, client: int) -> Iterator[Question]:
        """Yield one client's requests, without an end."""
        generator = np.random.default_rng([seed, client])
        shares = [self.share_flagged, self.share_malformed, self.share_vanishing]
        kinds: tuple[Kind, ...] = ("flagged", "malformed", "vanishing", "ordinary")
        while True:
            kind = kinds[int(generator.choice(4, p=[*shares, 1 - sum(shares)]))]
            yield self._question(kind, generator)

    def _question(self, kind: Kind, generator: np.random.Generator) -> Question:
        if kind == "malformed":
            number = int(generator.integers(len(self.malformed)))
            content, status = self.malformed[number]
            return Question(kind, number, content, status)
        bodies = self.flagged if kind == "flagged" else self.ordinary
        number = int(generator.integers(len(bodies)))
        num_read = int(generator.integers(1, self.most_read + 1)) if kind == "vanishing" else None
        return Question(kind, number, bodies[number], num_read=num_read)


@dataclass(frozen=True)
class Load:
    """What a server was sent, and when."""

    sent: tuple[Sent, ...]
    began_at: float
    ended_at: float
    """No request was sent after it."""
    cpu_share: float
    """Of one core, that the clients took."""


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep the calling thread, which sends and reads, to one core (Linux)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def apply_load(
    url: str,
    mix: Mix,
    *,
    clients: int,
    seconds: float,
    seed: int,
    per_client: int | None = None,
    every_s: tuple[float, Callable[[], None]] | None = None,
) -> Load:
    """Have clients send requests for some time.

    Args:
        url: Where chats are answered.
        mix: Of the requests.
        clients: That are at work at the same time.
        seconds: After which no request is sent any more.
        seed: Of the requests; the same ones come in the same order from each client.
        per_client: Requests after which a client is done; None goes on until the time is over.
        every_s: Something to do meanwhile, after each of so many seconds.
    """
    sent: list[Sent] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    began_at, cpu_s = time.perf_counter(), time.process_time()
    ends_at = began_at + seconds
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, trust_env=False) as http:

        async def client(number: int) -> None:
            for question in islice(mix.questions(seed=seed, client=number), per_client):
                if time.perf_counter() >= ends_at:
                    return
                sent.append(Sent(question, time.perf_counter()))
                await _send(http, url, sent[-1])

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        watch = None if every_s is None else asyncio.create_task(_repeat(*every_s))
        try:
            await asyncio.wait(tasks)
        finally:
            for task in (*tasks, *([] if watch is None else [watch])):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    wall_s = time.perf_counter() - began_at
    return Load(tuple(sent), began_at, ends_at, (time.process_time() - cpu_s) / wall_s)


async def _repeat(seconds: float, do: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        do()


async def _send(http: httpx.AsyncClient, url: str, sent: Sent) -> None:
    content = sent.question.content
    try:
        async with http.stream("POST", url, content=content, headers=JSON) as response:
            sent.status = response.status_code
            async for piece in response.aiter_raw():
                sent.pieces.append((time.perf_counter(), piece))
                if len(sent.pieces) == sent.question.num_read:
                    return
            sent.is_complete = True
    except httpx.HTTPError as error:
        sent.error = type(error).__name__
