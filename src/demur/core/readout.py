"""The linear read-out: the form of a detector that every engine can compute.

A score is `bias + sum over reads and layers of weights . state`: what standardisation, several
layers and several read-outs all fold into. vLLM, `demur.portable` and the fingerprint share it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read


@dataclass(frozen=True)
class LinearReadout:
    """Weights over the states of pooled reads."""

    weights: Mapping[CaptureSpec, Array]
    """For each read an array [layer, d_model], float32."""
    bias: float

    def __post_init__(self) -> None:
        """Refuse shapes that fit no read, and numbers that give no score."""
        if not np.isfinite(self.bias):
            raise DataError(f"the bias is {self.bias}: expected a finite number")
        for spec, weights in self.weights.items():
            if not spec.is_pooled:
                raise DataError(f"a linear read-out needs pooled reads, got {spec}")
            if weights.ndim != 2 or len(weights) != len(spec.layers):
                raise DataError(
                    f"weights have shape {weights.shape}: expected [{len(spec.layers)}, d_model]"
                )
            if not np.isfinite(weights).all():
                raise DataError(f"a weight of {spec} is not finite: fit the detector again")

    @cached_property
    def _directions(self) -> dict[CaptureSpec, Array]:
        """The weights of each read [layer * d_model], float64: converted once, not per request."""
        return {spec: w.reshape(-1).astype(np.float64) for spec, w in self.weights.items()}

    def score(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64; higher is less safe.

        Raises:
            CapabilityError: A read is missing.
            DataError: A state is not finite, or its shape does not fit the weights.
        """
        scores: Array = np.full(len(readings), self.bias)
        for spec, direction in self._directions.items():
            states = readings.captured(spec)  # [prompt, layer, d_model]
            if states.shape[1:] != self.weights[spec].shape:
                raise DataError(
                    f"states have shape {states.shape}: expected [prompt, layer, d_model] with "
                    f"{self.weights[spec].shape}"
                )
            products = states.reshape(len(states), -1).astype(np.float64)
            products *= direction
            # Sums over rows, no product of matrices: that would round a prompt's score differently
            # with the number of its neighbours, and wake threads that take longer than the sum.
            scores += products.sum(axis=1)
        # Whatever is not finite in a state is not finite in its score: one look is enough.
        if not np.isfinite(scores).all():
            raise DataError("a captured state is not finite: check the model's dtype and weights")
        return scores


def joined(readings: Readings, reads: Sequence[Read], *, num_prompts: int) -> Array:
    """Return the states of several pooled reads as one vector a prompt: [prompt, feature].

    Args:
        readings: That hold the reads.
        reads: Pooled captures.
        num_prompts: How many the readings must hold.

    Raises:
        CapabilityError: A read was not captured.
        DataError: A read is not a pooled capture, a state is not finite, or the prompts are others.
    """
    if len(readings) != num_prompts:
        raise DataError(f"the readings hold {len(readings)} prompts, the targets {num_prompts}")
    states = [readings.pooled(spec) for spec in _pooled_specs(reads)]
    return np.concatenate([array.reshape(num_prompts, -1) for array in states], axis=1)


def unjoined(weights: Array, bias: float, reads: Sequence[Read]) -> LinearReadout:
    """Return the read-out whose weights are those of joined states.

    Args:
        weights: [feature], in the order of `joined`.
        bias: Of the score.
        reads: Pooled captures.
    """
    specs = _pooled_specs(reads)
    layers = weights.reshape(sum(len(spec.layers) for spec in specs), -1)  # [layer, d_model]
    parts: dict[CaptureSpec, Array] = {}
    start = 0
    for spec in specs:
        stop = start + len(spec.layers)
        parts[spec] = layers[start:stop].astype(np.float32)
        start = stop
    return LinearReadout(parts, bias)


def _pooled_specs(reads: Sequence[Read]) -> list[CaptureSpec]:
    specs = [read for read in reads if isinstance(read, CaptureSpec) and read.is_pooled]
    if len(specs) < len(reads) or not specs:
        raise DataError(f"this detector needs pooled captures, got {list(reads)}")
    if len(set(specs)) < len(specs):
        raise DataError(f"a read is given twice: {list(reads)}")
    return specs


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)) without overflow.

    >>> sigmoid(0.0), sigmoid(-1e6), sigmoid(1e6)
    (0.5, 0.0, 1.0)
    """
    power = math.exp(-abs(value))
    return 1 / (1 + power) if value >= 0 else power / (1 + power)
