"""Throughput in alternating windows: tokens a second that reach the clients.

A window is the same work for every arm: each client sends the same requests in the same order, and
the clock runs from the first one to the last token. A window of so many seconds would hold other
requests in each arm, and other replies. Windows come in parts, and the arms take turns by parts in
an order that is drawn anew each time: a machine that is slow for a minute is slow for all of them.
Ratios are paired by round. Of five pairs the range holds the median with 94% (a sign test's
interval): no distribution is assumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from benchmarks.serving_load import Load, Streamed

TokenCount = Callable[[str], int]
"""Returns how many tokens a text has."""


@dataclass(frozen=True)
class Work:
    """Tokens that reached the clients, and the time that it took."""

    num_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, load: Load, *, count: TokenCount) -> Self:
        """Return what was done up to the last token.

        A server may send several tokens in one event, or none for one: so what counts are the
        tokens of the texts, by the same tokenizer for all servers.
        """
        streams = [Streamed.of(sent) for sent in load.sent if sent.status == 200]
        last_at = max((at for of in streams for at in of.times), default=load.began_at)
        return cls(sum(count(of.text) for of in streams), last_at - load.began_at)

    def __add__(self, other: "Work") -> "Work":
        """Return both together."""
        return Work(self.num_tokens + other.num_tokens, self.seconds + other.seconds)

    @property
    def tokens_per_s(self) -> float:
        """The rate; 0 where no time passed."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


def paired(
    windows: Mapping[str, Sequence[float]], *, over: str, under: str
) -> dict[str, float | list[float]]:
    """Return the median of the ratios of two arms, round by round, and their range.

    >>> paired({"a": [1.0, 2.0, 3.0], "b": [1.0, 1.0, 2.0]}, over="a", under="b")["median"]
    1.5
    """
    ratios = np.array(windows[over]) / np.array(windows[under])
    return {
        "median": round(float(np.median(ratios)), 4),
        "range": [round(float(ratios.min()), 4), round(float(ratios.max()), 4)],
        "covers_median": round(1 - 2 * 0.5 ** len(ratios), 4),
    }


def summary(windows: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the windows of each arm in tokens a second, with their median."""
    return {
        arm: {
            "tokens_per_s": [round(value, 1) for value in values],
            "median": round(float(np.median(values)), 1),
        }
        for arm, values in windows.items()
    }


def newest(windows: Mapping[str, Sequence[float]]) -> str:
    """Return the newest window of each arm, in tokens a second."""
    return ", ".join(f"{arm} {values[-1]:.0f}" for arm, values in windows.items())
