"""The linear read-out: the form of a detector that every engine can compute.

A score is `bias + sum over reads and layers of weights . state`: what standardisation, several
layers and several read-outs all fold into. vLLM, `demur.portable` and the fingerprint share it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec


@dataclass(frozen=True)
class LinearReadout:
    """Weights over the states of pooled reads."""

    weights: Mapping[CaptureSpec, Array]
    """For each read an array [layer, d_model], float32."""
    bias: float

    def __post_init__(self) -> None:
        """Refuse shapes that fit no read."""
        for spec, weights in self.weights.items():
            if not spec.is_pooled:
                raise DataError(f"a linear read-out needs pooled reads, got {spec}")
            if weights.ndim != 2 or len(weights) != len(spec.layers):
                raise DataError(
                    f"weights have shape {weights.shape}: expected [{len(spec.layers)}, d_model]"
                )

    def score(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64; higher is less safe.

        Raises:
            CapabilityError: A read is missing.
            DataError: A state is not finite, or its shape does not fit the weights.
        """
        total = np.full(len(readings), self.bias, dtype=np.float64)
        for spec, weights in self.weights.items():
            states = readings.pooled(spec)  # [prompt, layer, d_model]
            if states.shape[1:] != weights.shape:
                raise DataError(
                    f"states have shape {states.shape}: expected [prompt, {weights.shape[0]}, "
                    f"{weights.shape[1]}]"
                )
            # One dot product a prompt, always of the same length: a matrix product would round a
            # prompt's score differently with the number of its neighbours.
            flat = states.reshape(len(states), -1).astype(np.float64)
            direction = weights.reshape(-1).astype(np.float64)
            total += np.einsum("pd,d->p", flat, direction, optimize=False)
        return total
