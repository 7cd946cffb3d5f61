"""Turns the logits of a text's tokens into one score: at once, or a token after another.

An aggregation smooths the logits and pools what comes out. The smoothed values are called segments:
each stands for a stretch of tokens, and counts from the first full stretch on. A text that is
shorter than one stretch has a single segment, the mean of its tokens; so while a text grows, its
score is the mean until the first stretch is full. Memory does not grow with the text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from demur.core.readings import Array

State = dict[str, Array]
"""Arrays whose first axis is the row."""


@dataclass(frozen=True)
class Window:
    """The mean of the last `size` logits; a size of 1 leaves them as they are."""

    size: int = 1

    @property
    def warm_up(self) -> int:
        """Tokens of the first segment."""
        return self.size

    def segments(self, logits: Array) -> Array:
        """Return the means [segment] of all full windows of a text's logits [token]."""
        size = min(self.size, len(logits))
        means: Array = np.convolve(logits, np.full(size, 1 / size), mode="valid")
        return means

    def start(self, num_rows: int) -> State:
        """Return the state before the first token."""
        return {"latest": np.zeros((num_rows, self.size))}

    def update(self, state: State, logits: Array, counts: Array) -> tuple[State, Array]:
        """Return the state after one more token, and the mean of the last tokens [row].

        Args:
            state: Before the token.
            logits: Of the token, [row].
            counts: Tokens so far, this one included, [row].
        """
        latest = np.concatenate([state["latest"][:, 1:], logits[:, None]], axis=1)
        return {"latest": latest}, latest.sum(1) / np.minimum(counts, self.size)


@dataclass(frozen=True)
class Ema:
    """An exponential moving average; over its first 1 / `gain` tokens it is their plain mean."""

    gain: float

    @property
    def warm_up(self) -> int:
        """Tokens of the first segment."""
        return math.ceil(1 / self.gain)

    def segments(self, logits: Array) -> Array:
        """Return the average after each token from the first segment on, [segment]."""
        begin, rest = logits[: self.warm_up], logits[self.warm_up :]
        averages = accumulate(
            rest.tolist(), lambda old, new: old + self.gain * (new - old), initial=begin.mean()
        )
        return np.array(list(averages))

    def start(self, num_rows: int) -> State:
        """Return the state before the first token."""
        return {"average": np.zeros(num_rows)}

    def update(self, state: State, logits: Array, counts: Array) -> tuple[State, Array]:
        """Return the state after one more token, and the average [row]; see `Window.update`."""
        gains = np.where(counts <= self.warm_up, 1 / counts, self.gain)
        average = state["average"] + gains * (logits - state["average"])
        return {"average": average}, average


Smoothing = Window | Ema


class Pool(Protocol):
    """Makes one score of a text's segments."""

    def score(self, segments: Array) -> float:
        """Return the score of a text's segments [segment], of which there is at least one."""

    def start(self, num_rows: int) -> State:
        """Return the state before the first segment."""

    def update(self, state: State, segments: Array) -> tuple[State, Array]:
        """Return the state after one more segment [row], and the scores [row]."""


@dataclass(frozen=True)
class Last:
    """The last segment."""

    def score(self, segments: Array) -> float:
        """Return the last of the segments [segment]."""
        return float(segments[-1])

    def start(self, num_rows: int) -> State:
        """Return nothing: only the last segment counts."""
        return {}

    def update(self, state: State, segments: Array) -> tuple[State, Array]:
        """Return the new segments [row] themselves."""
        return {}, segments


@dataclass(frozen=True)
class Mean:
    """The mean over the segments."""

    def score(self, segments: Array) -> float:
        """Return the mean of the segments [segment]."""
        return float(segments.mean())

    def start(self, num_rows: int) -> State:
        """Return the state before the first segment."""
        return {"total": np.zeros(num_rows), "num_segments": np.zeros(num_rows)}

    def update(self, state: State, segments: Array) -> tuple[State, Array]:
        """Return the state after one more segment [row], and the means [row]."""
        total, count = state["total"] + segments, state["num_segments"] + 1
        return {"total": total, "num_segments": count}, total / count


@dataclass(frozen=True)
class Softmax:
    """The mean over the segments, each weighed by the exponential of itself over `temperature`."""

    temperature: float

    def score(self, segments: Array) -> float:
        """Return the weighted mean of the segments [segment]."""
        weights = np.exp((segments - segments.max()) / self.temperature)
        return float(weights @ segments / weights.sum())

    def start(self, num_rows: int) -> State:
        """Return the state before the first segment."""
        sums = {"mass": np.zeros(num_rows), "total": np.zeros(num_rows)}
        return {"peak": np.full(num_rows, -np.inf), **sums}

    def update(self, state: State, segments: Array) -> tuple[State, Array]:
        """Return the state after one more segment [row], and the weighted means [row].

        The sums are kept as multiples of the largest weight so far, so that none overflows.
        """
        peak = np.maximum(state["peak"], segments)
        kept = np.exp((state["peak"] - peak) / self.temperature)
        new = np.exp((segments - peak) / self.temperature)
        mass, total = kept * state["mass"] + new, kept * state["total"] + new * segments
        return {"peak": peak, "mass": mass, "total": total}, total / mass


@dataclass(frozen=True)
class Highest:
    """The mean of the highest segments; of all, if there are no more than `count`."""

    count: int = 1

    def score(self, segments: Array) -> float:
        """Return the mean of the highest of the segments [segment]."""
        return float(np.sort(segments)[-self.count :].mean())

    def start(self, num_rows: int) -> State:
        """Return the state before the first segment."""
        return {"highest": np.full((num_rows, self.count), -np.inf)}

    def update(self, state: State, segments: Array) -> tuple[State, Array]:
        """Return the state after one more segment [row], and the means [row]."""
        highest = np.sort(np.concatenate([state["highest"], segments[:, None]], axis=1))[:, 1:]
        is_there = highest > -np.inf
        return {"highest": highest}, np.where(is_there, highest, 0).sum(1) / is_there.sum(1)


@dataclass(frozen=True)
class Aggregation:
    """A smoothing and a pool."""

    smoothing: Smoothing
    pool: Pool

    def score(self, logits: Array) -> float:
        """Return the score of a text's logits [token], float64, of which there is at least one."""
        return self.pool.score(self.smoothing.segments(logits))

    def start(self, num_rows: int) -> State:
        """Return the state of texts without tokens; the first axis of each array is the row."""
        counts = {"num_tokens": np.zeros(num_rows, np.int64)}
        return counts | self.smoothing.start(num_rows) | self.pool.start(num_rows)

    def update(self, state: Mapping[str, Array], logits: Array) -> tuple[State, Array]:
        """Return the state after one more token, and the scores [row] of the texts so far.

        Args:
            state: From `start` or the last `update`; it stays as it was.
            logits: Of the new token of each row, [row], float64.
        """
        counts = state["num_tokens"] + 1
        smoothed, segments = self.smoothing.update(dict(state), logits, counts)
        # A segment that is not full yet is replaced by the next one.
        begun = self.pool.start(len(logits))
        is_full = counts > self.smoothing.warm_up
        for name, array in begun.items():
            array[is_full] = state[name][is_full]
        pooled, scores = self.pool.update(begun, segments)
        return {"num_tokens": counts} | smoothed | pooled, scores
