"""Linear read-outs as columns of numbers, one a token: what an engine can compute inside a model.

A read-out's score is a sum over reads, and the score of a mean of states is the mean of the states'
scores. So each read-out and read is a column: the model adds up its layers' products for each
token, and a prompt's score is the last token's number, or the mean of those of some tokens. States
never leave the model. What goes on to detectors is the one state [layer, d_model] of least norm
that has these products with all read-outs: the true state's projection onto the span of their
weights, which every one of them scores as it would score the state itself.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from demur.core.errors import CapabilityError, DataError
from demur.core.readings import Array
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec

LAST = CaptureSpec((-1,))
"""A read of the last token, which is always computed: it stands in for what nobody asks for."""
Spans = Sequence[Sequence[tuple[int, int]]]
"""For each column the runs of tokens that it is averaged over."""


@dataclass(frozen=True)
class Column:
    """One read of one read-out."""

    spec: CaptureSpec
    weights: Array
    """[layer, d_model], float32."""


@dataclass(frozen=True)
class Columns:
    """All columns that are computed of a token, and what became of the read-outs."""

    columns: tuple[Column, ...]
    num_blocks: int

    @classmethod
    def of(cls, readouts: Iterable[LinearReadout], *, num_blocks: int) -> Self:
        """Return the columns of read-outs.

        Args:
            readouts: Those of all detectors that the engine is to serve.
            num_blocks: Of the model.

        Raises:
            CapabilityError: A read is not one that a column can hold.
            DataError: A layer is none of the model's.
        """
        columns = tuple(
            Column(spec, weights)
            for readout in readouts
            for spec, weights in readout.weights.items()
        )
        for column in columns:
            _require_linear(column.spec)
            for layer in column.spec.layers:
                if not -num_blocks <= layer < num_blocks:
                    raise DataError(f"layer {layer} is none of the model's {num_blocks} blocks")
        return cls(columns, num_blocks)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.columns)

    @property
    def specs(self) -> frozenset[CaptureSpec]:
        """The reads that can be answered."""
        return frozenset(column.spec for column in self.columns)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose output is read, from the lowest up."""
        found = {n % self.num_blocks for column in self.columns for n in column.spec.layers}
        return tuple(sorted(found))

    @property
    def is_rms(self) -> Array:
        """[column], true where each token's state is divided by its root mean square."""
        return np.array([column.spec.normalise == "rms" for column in self.columns], bool)

    def default_spans(self, num_tokens: int) -> Spans:
        """Return what is read of a prompt whose turns nobody has named: all of it for one."""
        return [spans_of(column.spec, num_tokens, [(0, num_tokens)]) for column in self.columns]

    def weights_at(self, layer: int) -> Array:
        """Return what a block's output is multiplied with: [d_model, column], float32."""
        d_model = self.columns[0].weights.shape[1]
        found = np.zeros((d_model, len(self)), np.float32)
        for number, column in enumerate(self.columns):
            for index, of in enumerate(column.spec.layers):
                if of % self.num_blocks == layer:
                    found[:, number] = column.weights[index]
        return found

    def state(self, spec: CaptureSpec, values: Array) -> Array:
        """Return the state of least norm with the given products: [layer, d_model], float32.

        Args:
            spec: One of `specs`.
            values: Of all columns, [column].

        Raises:
            CapabilityError: No read-out reads this.
            DataError: A value is not finite.
        """
        if spec not in self._inverses:
            raise CapabilityError(
                f"the engine computes no read-out of {spec}: it was built for the read-outs of "
                "other detectors; name this one when the engine is loaded"
            )
        numbers, inverse = self._inverses[spec]
        found = values[numbers].astype(np.float32)
        if not np.isfinite(found).all():
            raise DataError("a score is not finite: check the model's dtype and weights")
        shape = self.columns[numbers[0]].weights.shape
        state: Array = inverse[0] * found[0]
        for row, value in zip(inverse[1:], found[1:], strict=True):
            state += row * value
        return state.reshape(shape)

    @cached_property
    def _inverses(self) -> dict[CaptureSpec, tuple[list[int], Array]]:
        """For each read its columns, and the pseudo-inverse [column, layer * d_model], float32."""
        found = {}
        for spec in self.specs:
            numbers = [n for n, column in enumerate(self.columns) if column.spec == spec]
            weights = np.stack([self.columns[n].weights.reshape(-1) for n in numbers])
            inverse = np.linalg.pinv(weights.astype(np.float64)).T
            found[spec] = numbers, np.ascontiguousarray(inverse, np.float32)
        return found

    @cached_property
    def sha256(self) -> str:
        """The hash of all reads and weights: what a compiled model depends on."""
        digest = hashlib.sha256(f"{self.num_blocks}".encode())
        for column in self.columns:
            digest.update(repr(column.spec).encode())
            digest.update(np.ascontiguousarray(column.weights, np.float32).tobytes())
        return digest.hexdigest()


def _require_linear(spec: CaptureSpec) -> None:
    """Refuse a read whose score is no mean of the scores of tokens.

    Raises:
        CapabilityError: It is one.
    """
    is_mean = spec.pool == "mean" and spec.positions in ("user", "users", "all")
    if spec.site != "block_out" or not (spec.positions == "last" or is_mean):
        raise CapabilityError(
            f"a read-out of {spec} cannot be computed inside the model: expected the output of "
            "blocks at the last token, or its mean over user turns or the whole prompt"
        )


def spans_of(
    spec: CaptureSpec, num_tokens: int, user_turns: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return the runs of tokens that a read of a prompt averages over.

    Args:
        spec: What is read.
        num_tokens: Of the prompt.
        user_turns: Start and stop of each, in order.

    Raises:
        DataError: The prompt has no such tokens.
    """
    if spec.positions == "last":
        return ((num_tokens - 1, num_tokens),)
    if spec.positions == "all":
        return ((0, num_tokens),)
    chosen = user_turns[-1:] if spec.positions == "user" else user_turns
    spans = tuple((start, stop) for start, stop in chosen if stop > start)
    if not spans:
        raise DataError("the chat has no user text: there is nothing to score")
    return spans


class PrefillScores:
    """The columns of one prompt, added up while the model reads it.

    A prompt may come in chunks, and from its start again after its request was preempted. Tokens
    that a prefix cache holds are never computed: a column that needs one of them has no score.

    Args:
        num_tokens: Of the prompt.
        spans: For each column the runs of tokens that it is averaged over.
    """

    def __init__(self, num_tokens: int, spans: Spans) -> None:
        self.num_tokens = num_tokens
        self._spans = spans
        self._start = self._next = 0
        self._totals = np.zeros(len(spans))

    def wanted(self, start: int, count: int) -> Array:
        """Return which tokens of a chunk a column needs, counted from its first, ascending.

        Args:
            start: The position of the chunk's first token.
            count: Of its tokens; those of the reply may follow those of the prompt.
        """
        is_wanted = np.zeros(count, bool)
        for first, end in (span for spans in self._spans for span in spans):
            is_wanted[max(first - start, 0) : max(end - start, 0)] = True
        return np.flatnonzero(is_wanted)

    def add(self, start: int, values: Array) -> bool:
        """Add the values of tokens, [token, column]; return true once the prompt was read whole.

        Args:
            start: The position of the first of them.
            values: Of one chunk; tokens of the reply may follow those of the prompt.
        """
        if start != self._next or start == 0:
            self._start = start
            self._totals[:] = 0
        stop = min(start + len(values), self.num_tokens)
        self._next = stop
        for number, spans in enumerate(self._spans):
            for first, end in spans:
                low, high = max(first, start), min(end, stop)
                if low < high:
                    part = values[low - start : high - start, number]
                    self._totals[number] += part.astype(np.float64).sum()
        return stop == self.num_tokens

    def values(self) -> Array:
        """Return the mean of each column, [column], float64.

        Raises:
            DataError: A token that a column needs was not computed, or the prompt is not read yet.
        """
        if self._next != self.num_tokens:
            raise DataError(
                f"{self._next} of {self.num_tokens} tokens were read: there is no score yet"
            )
        if any(first < self._start for spans in self._spans for first, _ in spans):
            raise DataError(
                f"the first {self._start} tokens came from the prefix cache and were not scored: "
                "send the request with skip_reading_prefix_cache"
            )
        counts = [sum(stop - start for start, stop in spans) for spans in self._spans]
        return self._totals / np.array(counts, np.float64)
