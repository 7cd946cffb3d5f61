"""The length of a prompt alone: a control, not a detector.

Logistic regression on log(1 + characters). In many sets unsafe prompts are longer or shorter than
safe ones; whoever compares detectors on such a set has to know how far length alone goes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance
from demur.detectors._texts import (
    Score,
    TextDetector,
    require_positive,
    vector,
)

__all__ = ["Length"]


@dataclass
class Length(TextDetector):
    """Logistic regression on log(1 + characters).

    Args:
        reads: `Texts()` alone.
    """

    c: float = 1.0
    """Inverse strength of the L2 penalty, as scikit-learn's `C`, over 0."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""

    array_names: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require_balance(self.balance)
        require_positive(c=self.c)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing, the problem is convex.

        Raises:
            DataError: The readings and targets do not fit together.
        """
        texts = self.texts(readings, num_prompts=len(targets))
        logistic = import_named("demur.detectors._logistic")
        weights, bias = logistic.fit_standardised(
            np.array([[log_length(text)] for text in texts]),
            targets.unsafe,
            logistic.balanced_weights(targets, self.balance),
            c=self.c,
            max_iterations=1000,
        )
        return self.load_state({"weight": weights, "bias": np.array([bias])})

    def score_with(self, arrays: Mapping[str, Array]) -> Score:
        """Return the score of the fitted weight; see `TextDetector`."""
        weight, bias = (vector(arrays, name, size=1)[0] for name in self.array_names)

        def score(texts: Sequence[str]) -> Array:
            return np.array([weight * log_length(text) + bias for text in texts], np.float64)

        return score


def log_length(text: str) -> float:
    """Return log(1 + characters).

    >>> log_length("")
    0.0
    """
    return math.log1p(len(text))
