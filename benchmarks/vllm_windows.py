"""What the benchmarks of the vLLM engine ask, what comes of it, and how windows are compared.

A window is the same requests for every arm, in the same order, with as many under way at a time:
its clock runs from the first request to the last token. What is compared are the replies to
prompts that pass, since a guard answers the others in another way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.alternating import summary
from benchmarks.serving_soak import percentiles
from demur.core.errors import DataError
from demur.core.results import PASS
from demur.core.types import Chat


@dataclass(frozen=True)
class Cell:
    """What a round is made of."""

    streams: int
    share: float
    """Of requests that are flagged."""
    is_shared: bool = False
    """All prompts have one long system message."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        prefix = ", shared prefix" if self.is_shared else ""
        return f"{self.streams} stream{'s' * (self.streams > 1)}, {self.share:.0%} flagged{prefix}"


def cells_of(streams: Sequence[int], shares: Sequence[float], *, is_shared: bool) -> list[Cell]:
    """Return all cells.

    Args:
        streams: Requests under way at a time.
        shares: Of requests that are flagged.
        is_shared: With cells of a shared prefix, too, which have no flagged prompts.
    """
    own = [Cell(number, share) for share in shares for number in streams]
    return own + [Cell(number, 0.0, is_shared=True) for number in streams if is_shared]


@dataclass(frozen=True)
class Asked:
    """One request."""

    id: str
    chat: Chat
    is_flagged: bool
    max_tokens: int


@dataclass
class Answer:
    """What came of a request."""

    started_at: float
    token_ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each of its tokens came."""
    route: str = PASS
    is_scored: bool = False
    score: float | None = None
    """Of the first detector."""
    error: str | None = None

    def add(self, token_ids: Iterable[int], *, at: float) -> None:
        """Take note of tokens that came together."""
        for token_id in token_ids:
            self.token_ids.append(token_id)
            self.times.append(at)


@dataclass(frozen=True)
class Window:
    """The answers of one arm, by request."""

    answers: dict[str, Answer]
    seconds: float

    def of(self, asked: Sequence[Asked]) -> list[Answer]:
        """Return the answers to prompts that are not to be flagged."""
        return [self.answers[one.id] for one in asked if not one.is_flagged]

    def tokens_per_s(self, asked: Sequence[Asked]) -> float:
        """Return the rate of the tokens of replies to prompts that are not to be flagged."""
        return sum(len(answer.token_ids) for answer in self.of(asked)) / self.seconds

    def first_s(self, asked: Sequence[Asked]) -> list[float]:
        """Return the times to first token of these replies, rendering and queue included."""
        return [of.times[0] - of.started_at for of in self.of(asked) if of.times]

    def between_s(self, asked: Sequence[Asked]) -> list[float]:
        """Return the times between two tokens of these replies."""
        return [float(gap) for of in self.of(asked) for gap in np.diff(of.times)]


@dataclass(frozen=True)
class Workload:
    """Requests by window: each has others, and every arm the same.

    Args:
        ordinary: Chats that pass.
        flagged: Chats that are flagged.
        share: Of all requests that are to be flagged: so many of all windows together, rounded,
            and one at least if it is over 0.
        per_window: Requests.
        windows: How many there are.
        max_tokens: Of a reply.
        seed: Draws places and prompts.
    """

    ordinary: Sequence[Chat]
    flagged: Sequence[Chat]
    share: float
    per_window: int
    windows: int
    max_tokens: int
    seed: int

    def requests(self, window: int) -> list[Asked]:
        """Return the requests of a window."""
        first = window * self.per_window
        return self._all()[first : first + self.per_window]

    def _all(self) -> list[Asked]:
        generator = np.random.default_rng(self.seed)
        total = self.per_window * self.windows
        num_flagged = max(round(self.share * total), 1 if self.share else 0)
        places = set(generator.choice(total, num_flagged, replace=False).tolist())
        passing, others = (_endless(of, generator) for of in (self.ordinary, self.flagged))
        return [
            Asked(str(n), next(others if n in places else passing), n in places, self.max_tokens)
            for n in range(total)
        ]


def _endless(chats: Sequence[Chat], generator: np.random.Generator) -> Iterator[Chat]:
    """Yield chats in random order, each as often as the others."""
    while True:
        for index in generator.permutation(len(chats)):
            yield chats[index]


@dataclass(frozen=True)
class Difference:
    """Two replies to one prompt that are not the same."""

    asked: Asked
    token_ids: tuple[int, ...]
    other_ids: tuple[int, ...]


def differences(asked: Sequence[Asked], one: Window, other: Window) -> list[Difference]:
    """Return where replies to prompts that are not to be flagged differ between two arms."""
    pairs = [
        (of, tuple(one.answers[of.id].token_ids), tuple(other.answers[of.id].token_ids))
        for of in asked
        if not of.is_flagged
    ]
    return [Difference(of, ours, theirs) for of, ours, theirs in pairs if ours != theirs]


def problems(asked: Sequence[Asked], window: Window, *, is_guarded: bool) -> list[str]:
    """Return what is wrong with a window: lost, not scored, or on the wrong route."""
    found = []
    for one in asked:
        answer = window.answers.get(one.id)
        if answer is None or answer.error is not None or not answer.token_ids:
            found.append(f"request {one.id}: lost ({answer and answer.error})")
        elif is_guarded and not answer.is_scored:
            found.append(f"request {one.id}: not scored")
        elif is_guarded and (answer.route != PASS) != one.is_flagged:
            found.append(f"request {one.id}: the route is {answer.route}")
    return found


def scores_apart(ours: Sequence[Window], theirs: Sequence[Window]) -> dict[str, float]:
    """Return how far two arms' scores of the same prompts lie apart, and how far they spread.

    Raises:
        DataError: A prompt was not scored.
    """
    pairs = [
        (answer.score, other.answers[request_id].score)
        for one, other in zip(ours, theirs, strict=True)
        for request_id, answer in one.answers.items()
    ]
    if any(None in pair for pair in pairs):
        raise DataError("a prompt was not scored")
    scores = np.array(pairs, dtype=float)
    apart = np.abs(scores[:, 0] - scores[:, 1])
    return {
        "median": float(np.median(apart)),
        "most": float(apart.max()),
        "spread": float(scores.std()),
    }


def rates(asked: Sequence[Sequence[Asked]], windows: Sequence[Window]) -> dict[str, Any]:
    """Return an arm's speed: tokens a second by window, and percentiles over all windows."""
    by_window = list(zip(windows, asked, strict=True))
    return {
        "tokens_per_s": summary(np.array([window.tokens_per_s(of) for window, of in by_window])),
        "first_token_ms": percentiles([s for window, of in by_window for s in window.first_s(of)]),
        "between_tokens_ms": percentiles(
            [s for window, of in by_window for s in window.between_s(of)]
        ),
    }


def ratios(
    asked: Sequence[Sequence[Asked]], over: Sequence[Window], under: Sequence[Window]
) -> dict[str, Any]:
    """Return the ratios of two arms, paired by window, with 95% bootstrap intervals."""
    by_window = list(zip(asked, over, under, strict=True))
    rates_of = [one.tokens_per_s(of) / other.tokens_per_s(of) for of, one, other in by_window]
    first = [(one.first_s(of), other.first_s(of)) for of, one, other in by_window]
    between = [(one.between_s(of), other.between_s(of)) for of, one, other in by_window]
    return {
        "tokens_per_s": summary(np.array(rates_of)),
        "first_token": _of_medians(first),
        "between_tokens": _of_medians(between),
    }


def _of_medians(pairs: Sequence[tuple[list[float], list[float]]]) -> dict[str, object]:
    return summary(np.array([np.median(one) / np.median(other) for one, other in pairs]))
