"""Heads for categories: one linear read-out a key of a published scheme, beside a detector.

A key without a head is unsupported, and is never scored: an absent number says more than a made-up
one. A key has a head if enough positives of it stood in the training prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout, sigmoid
from demur.core.reads import CaptureSpec, Read


@dataclass(frozen=True)
class Head:
    """The read-out of one key, with its map to a probability."""

    readout: LinearReadout
    slope: float
    """probability = sigmoid(slope * score + intercept), at even odds."""
    intercept: float


@dataclass(frozen=True)
class CategoryHeads:
    """What categories a prompt belongs to, by key."""

    heads: Mapping[str, Head]
    num_positives: Mapping[str, int]
    """Training prompts of each key of the schemes, whether it has a head or not."""

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The keys of the schemes that have no head."""
        return tuple(key for key in self.num_positives if key not in self.heads)

    def probabilities(self, readings: Readings) -> dict[str, Array]:
        """Return for each key with a head the probability of each prompt, [prompt].

        Raises:
            CapabilityError: A read is missing.
            DataError: A state is not finite, or its shape does not fit.
        """
        return {
            key: np.array([sigmoid(head.slope * s + head.intercept) for s in scores.tolist()])
            for key, head in self.heads.items()
            for scores in (head.readout.score(readings),)
        }

    def arrays(self) -> dict[str, Array]:
        """Return `KEY:I` [layer, d_model] of read I, and `KEY:numbers` (bias, slope, intercept)."""
        arrays: dict[str, Array] = {}
        for key, head in self.heads.items():
            numbers = (head.readout.bias, head.slope, head.intercept)
            arrays[f"{key}:numbers"] = np.array(numbers)
            for index, weights in enumerate(head.readout.weights.values()):
                arrays[f"{key}:{index}"] = weights
        return arrays

    def as_dict(self) -> dict[str, Any]:
        """Return what is no array, for JSON."""
        return {"num_positives": dict(self.num_positives), "supported": list(self.heads)}

    @classmethod
    def from_arrays(
        cls, fields: Mapping[str, Any], arrays: Mapping[str, Array], reads: tuple[Read, ...]
    ) -> Self:
        """Take over what `as_dict` and `arrays` returned.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        specs = [read for read in reads if isinstance(read, CaptureSpec)]
        heads = {}
        try:
            for key in fields["supported"]:
                weights = {spec: arrays[f"{key}:{i}"] for i, spec in enumerate(specs)}
                bias, slope, intercept = map(float, arrays[f"{key}:numbers"])
                heads[key] = Head(LinearReadout(weights, bias), slope, intercept)
            return cls(heads, {key: int(n) for key, n in fields["num_positives"].items()})
        except (KeyError, ValueError) as error:
            raise DataError(f"the category heads are damaged ({error}): fit them again") from error
