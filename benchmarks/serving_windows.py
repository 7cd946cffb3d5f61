"""Throughput in alternating windows: tokens a second that reach the clients.

A window is the same work for every arm: each client sends the same requests in the same order, and
the clock runs from the first one to the last token. A window of so many seconds would hold other
requests in each arm, and other replies. The order of the arms is drawn anew each round.
Ratios are paired by round. Of five pairs the range holds the median with 94% (a sign test's
interval): no distribution is assumed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.serving_load import Load, Streamed

TokenCount = Callable[[str], int]
"""Returns how many tokens a text has."""


def tokens_a_second(load: Load, *, count: TokenCount) -> float:
    """Return how many tokens reached the clients, by the time until the last one; 0 if none did.

    A server may send several tokens in one event, or none for one: so what counts are the tokens
    of the texts, by the same tokenizer for all servers.
    """
    streams = [Streamed.of(sent) for sent in load.sent if sent.status == 200]
    last_at = max((at for of in streams for at in of.times), default=load.began_at)
    if last_at <= load.began_at:
        return 0.0
    return sum(count(of.text) for of in streams) / (last_at - load.began_at)


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
