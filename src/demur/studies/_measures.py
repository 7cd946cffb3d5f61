"""Thresholds that studies choose, means over what is known, and what a difference is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import precision_recall_curve

from demur.core.readings import Array

FPR = 0.01
"""The false-positive rate at which studies report recall."""


def threshold_at(safe_scores: Array, fpr: float = FPR) -> float:
    """Return the score that a share of safe prompts exceeds: scores over it are flagged."""
    return float(np.quantile(safe_scores, 1 - fpr))


def best_f1_threshold(scores: Array, unsafe: Array) -> float:
    """Return the threshold of the highest F1, midway to the next lower score.

    >>> best_f1_threshold(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    1.5
    """
    precision, recall, thresholds = precision_recall_curve(unsafe, scores)
    both = (precision + recall)[:-1]
    values = 2 * (precision * recall)[:-1] / np.where(both > 0, both, 1.0)
    at = float(thresholds[int(values.argmax())])
    lower = scores[scores < at]
    return float((at + lower.max()) / 2) if len(lower) else at - 1.0


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is known; None if nothing is.

    >>> mean([0.5, None, 1.0])
    0.75
    """
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, 0.0)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, over the seeds of a study."""

    mean: float
    error: float | None
    """Its standard error; None of a single pair."""
    num_pairs: int

    @classmethod
    def of(
        cls, ours: Sequence[float | None], theirs: Sequence[float | None]
    ) -> "Difference | None":
        """Return how much higher ours are; None if no pair is known.

        Args:
            ours: A value a seed.
            theirs: Of the same seeds.
        """
        both = zip(ours, theirs, strict=True)
        gaps = [a - b for a, b in both if a is not None and b is not None]
        if not gaps:
            return None
        error = spread(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
        return cls(float(np.mean(gaps)), error, len(gaps))

    @property
    def is_higher(self) -> bool:
        """True if ours are higher by more than two standard errors, or at all of one pair."""
        return self.mean > 2 * (self.error or 0.0)

    @property
    def is_lower(self) -> bool:
        """True if ours are lower by more than two standard errors, or at all of one pair."""
        return -self.mean > 2 * (self.error or 0.0)

    def __str__(self) -> str:
        """Return it in words.

        >>> str(Difference.of([0.9, 0.8], [0.5, 0.6]))
        '+0.3000 (standard error 0.1000, 2 seeds)'
        """
        if self.error is None:
            return f"{self.mean:+.4f} (1 seed)"
        return f"{self.mean:+.4f} (standard error {self.error:.4f}, {self.num_pairs} seeds)"


def claim(text: str, *, holds: bool, numbers: str) -> str:
    """Say whether a claim of a paper's holds on the model that is studied.

    >>> claim("v2: the middle is best", holds=False, numbers="0.8 against 0.9")
    'Claim of v2: the middle is best. Does not hold here: 0.8 against 0.9.'
    """
    return f"Claim of {text}. {'Holds' if holds else 'Does not hold'} here: {numbers}."
