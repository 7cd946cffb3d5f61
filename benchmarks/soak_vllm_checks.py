"""What `benchmarks.soak_vllm` holds the answers to its requests against."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving_checks import MARGIN
from demur.core.protocols import Request
from demur.core.results import PASS, Reply
from demur.core.types import Chat
from demur.guard import Guard
from demur.guard.exchange import Exchange

FEWEST, MOST = 4, 8
"""Tokens of a reply."""
ABANDONED, RESPONDER = "abandoned", "fixed_reply"
Gap = Callable[[Chat, tuple[int, ...]], float]
"""Says how far the least greedy token of a reply to a chat lies below the largest logit."""


@dataclass(frozen=True)
class Known:
    """An ordinary prompt with the reply that it gets alone."""

    chat: Chat
    guard: Guard
    """That judges it."""
    token_ids: tuple[int, ...]


def distinct(known: Sequence[Known]) -> list[Known]:
    """Return those whose replies are whole, and differ from the others' within FEWEST tokens."""
    found: dict[tuple[int, ...], Known] = {}
    for one in known:
        if len(one.token_ids) == MOST:
            found.setdefault(one.token_ids[:FEWEST], one)
    return list(found.values())


@dataclass
class Vanishing:
    """A client that leaves when it was asked so many times whether it still waits."""

    after: int
    num_asked: int = 0

    def __call__(self) -> bool:
        """Say whether it has left."""
        self.num_asked += 1
        return self.num_asked > self.after


@dataclass
class Check:
    """Judges answers.

    Args:
        known: The ordinary prompts.
        gap: See `Gap`.
        text: What flagged prompts get.
    """

    known: Sequence[Known]
    gap: Gap
    text: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    largest_gap: float = 0.0
    """Of the replies that are not the known ones, and right all the same."""
    _expected: dict[str, tuple[int | None, Vanishing | None]] = field(default_factory=dict)
    _others: dict[tuple[int, tuple[int, ...]], list[str]] = field(default_factory=dict)

    def expect(self, request_id: str, place: int | None, vanishing: Vanishing | None) -> None:
        """Take note of a request before it is sent.

        Args:
            request_id: Its id.
            place: Of its prompt among the known ones; None is flagged.
            vanishing: Its client, if that leaves.
        """
        self._expected[request_id] = place, vanishing

    def take(self, request_id: str, exchange: Exchange, reasons: Sequence[str]) -> None:
        """Judge what came of a request.

        Args:
            request_id: Its id.
            exchange: With all of its events.
            reasons: Of each time that the engine said that it was done.
        """
        place, vanishing = self._expected.pop(request_id)
        if len(reasons) != 1:
            self._wrong(request_id, f"lost: it ended {len(reasons)} times")
        elif reasons[0] == ABANDONED and vanishing is None:
            self._wrong(request_id, "lost: it was given up, and its client had not left")
        elif reasons[0] == ABANDONED:
            self.counts["clients that left"] += 1
            if place is not None and exchange.tokens:
                self._hold(request_id, place, tuple(token.token_id for token in exchange.tokens))
        elif exchange.failure is not None:
            self._wrong(request_id, f"lost: {exchange.failure}")
        elif not exchange.is_scored:
            self._wrong(request_id, "unscored")
        elif place is None:
            self._flagged(request_id, exchange.reply())
        else:
            self._passed(request_id, place, exchange.reply(), exchange.request)

    def _flagged(self, request_id: str, reply: Reply) -> None:
        if (reply.route, reply.text) == (RESPONDER, self.text):
            self.counts["flagged prompts with the responder's answer"] += 1
        else:
            self._wrong(request_id, f"mixed up: flagged, and answered by {reply.route}")

    def _passed(self, request_id: str, place: int, reply: Reply, request: Request | None) -> None:
        if reply.route != PASS:
            self._wrong(request_id, f"mixed up: it passes, and was answered by {reply.route}")
        elif request is None or len(reply.token_ids) != request.sampling.max_tokens:
            self._wrong(request_id, f"lost: {len(reply.token_ids)} tokens")
        else:
            self._hold(request_id, place, reply.token_ids)

    def _hold(self, request_id: str, place: int, token_ids: tuple[int, ...]) -> None:
        """Hold tokens against those of the same prompt alone; others are judged later."""
        if token_ids == self.known[place].token_ids[: len(token_ids)]:
            self.counts["replies that are those of the same prompt alone"] += 1
        else:
            self._others.setdefault((place, token_ids), []).append(request_id)

    def judge(self) -> None:
        """Judge the replies that are not the known ones, and what never came."""
        for (place, token_ids), request_ids in self._others.items():
            gap = self.gap(self.known[place].chat, token_ids)
            if gap < MARGIN:
                self.counts["replies that are nearly greedy"] += len(request_ids)
                self.largest_gap = max(self.largest_gap, gap)
                continue
            for request_id in request_ids:
                self._wrong(request_id, f"mixed up: a token is {gap:.2f} below the largest logit")
        self._others.clear()
        for request_id in self._expected:
            self._wrong(request_id, "lost: nothing came of it")
        self._expected.clear()

    def _wrong(self, request_id: str, what: str) -> None:
        self.problems.append(f"request {request_id}: {what}")

    def as_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "problems": self.problems[:20],
            "num_problems": len(self.problems),
            "largest_gap": self.largest_gap,
        }


def power(known: Sequence[Known], gap: Gap, *, num: int, seed: int) -> dict[str, int]:
    """Return how many replies of other prompts the check finds by greediness alone."""
    generator = np.random.default_rng(seed)
    caught = 0
    for _ in range(num):
        one, other = (int(i) for i in generator.choice(len(known), 2, replace=False))
        caught += gap(known[one].chat, known[other].token_ids[:FEWEST]) >= MARGIN
    return {"tried": num, "caught": caught}
