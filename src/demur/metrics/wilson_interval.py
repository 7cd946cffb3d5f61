"""The interval of a rate: Wilson's, on as many prompts as the groups are worth.

Prompts of one group (a request in ten languages, an attack on one goal in a hundred wordings) tend
to be flagged together. The number of prompts is divided by the design effect: the variance of the
rate between groups over that of independent prompts, at least 1. Where all or none are flagged, the
variance says nothing, and each group counts once.

Paper: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927), JASA
22(158); Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number of
Positive Counts Estimated from Survey Data (1998), Survey Methodology 24(2): the effective number.

Differs: Korn and Graubard put the effective number into the Clopper-Pearson interval, which is
wider.
"""

import math

import numpy as np
from scipy.special import ndtri

from demur.core.readings import Array

__all__ = ["wilson_interval"]


def wilson_interval(
    flagged: Array, group: Array, *, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of the share of flagged prompts; None of no prompts.

    Args:
        flagged: [prompt], true or false.
        group: [prompt].
        level: Of confidence.

    >>> low, high = wilson_interval(np.arange(100) < 10, np.arange(100))
    >>> round(low, 4), round(high, 4)
    (0.0552, 0.1744)
    """
    if not len(flagged):
        return None
    rate, number = float(flagged.mean()), _effective_number(flagged, group)
    z = float(ndtri((1 + level) / 2))
    centre = (rate + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(
        rate * (1 - rate) / number + z * z / (4 * number * number)
    )  # fmt: skip
    return max(0.0, centre - half), min(1.0, centre + half)


def _effective_number(flagged: Array, group: Array) -> float:
    _, place = np.unique(group, return_inverse=True)
    rate = float(flagged.mean())
    if rate in (0.0, 1.0):
        return float(place.max() + 1)
    between = float((np.bincount(place, flagged - rate) ** 2).sum())
    independent = len(flagged) * rate * (1 - rate)
    return len(flagged) * independent / max(independent, between)
