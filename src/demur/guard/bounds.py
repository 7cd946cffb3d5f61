"""What n benign groups can promise of a false-positive rate: exact binomial bounds.

A threshold just over the (k + 1)-th highest of n scores flags at most k of them. Whatever the
scores' distribution, the rate that it will have on new ones exceeds a stated rate with a
probability of at most Binom.cdf(k, n, rate), over the draw of the n.

Paper: C. J. Clopper and E. S. Pearson, The Use of Confidence or Fiducial Limits Illustrated in the
    Case of the Binomial (Biometrika 26, 1934); V. Vovk, Conditional Validity of Inductive Conformal
    Predictors (2012, arXiv 1209.2673), Proposition 2a: the same bound for split conformal sets.
Differs: A unit is a group of prompts that belong together, by its highest score.
"""

import math

import numpy as np
from scipy.special import bdtr, betaincinv

from demur.core.artifacts import Guarantee
from demur.core.errors import ConfigError

DELTA = 0.05
"""The usual probability that a promise fails: of a draw of benign prompts that misleads."""
_ROUNDING = 1e-9
"""Keeps a quotient or product from missing the whole number that it is."""


def num_groups_needed(
    fpr: float, *, guarantee: Guarantee = "binomial", delta: float = DELTA
) -> int:
    """Return the least number of benign groups that supports a false-positive rate.

    With fewer, even a threshold that flags none of them would not keep the promise. `binomial`:
    n >= ln(delta) / ln(1 - rate); `conformal`: n >= 1 / rate - 1.

    Raises:
        ConfigError: The rate or delta is not between 0 and 1.

    >>> num_groups_needed(0.01), num_groups_needed(0.001)
    (299, 2995)
    >>> num_groups_needed(0.01, guarantee="conformal")
    99
    """
    for name, value in (("the false-positive rate", fpr), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value}: expected more than 0, less than 1")
    if guarantee == "conformal":
        return max(1, math.ceil(1 / fpr - 1 - _ROUNDING))
    return max(1, math.ceil(math.log(delta) / math.log1p(-fpr) - _ROUNDING))


def lowest_rate(
    num_groups: int, *, guarantee: Guarantee = "binomial", delta: float = DELTA
) -> float:
    """Return the lowest false-positive rate that a number of benign groups can promise.

    >>> round(lowest_rate(200), 4), round(lowest_rate(200, guarantee="conformal"), 4)
    (0.0149, 0.005)
    """
    if guarantee == "conformal":
        return 1 / (num_groups + 1)
    return float(-np.expm1(math.log(delta) / num_groups))


def flags_allowed(
    num_groups: int, fpr: float, *, guarantee: Guarantee = "binomial", delta: float = DELTA
) -> int:
    """Return how many of the calibration groups a threshold for a rate may flag, at least 0.

    Args:
        num_groups: At least `num_groups_needed`.
        fpr: The rate.
        guarantee: `conformal`: a new group is flagged with a probability of at most `fpr`, on
            average over draws of the calibration groups; `binomial`: with a probability of
            1 - delta over that draw, the rate is at most `fpr`.
        delta: Counts for `binomial` alone.

    >>> flags_allowed(1000, 0.01, guarantee="conformal"), flags_allowed(1000, 0.01)
    (9, 4)
    """
    if guarantee == "conformal":
        return max(0, math.floor((num_groups + 1) * fpr + _ROUNDING) - 1)
    flagged = np.arange(math.ceil(num_groups * fpr) + 1)
    risks = bdtr(flagged, num_groups, fpr)
    return max(0, int(np.searchsorted(risks, delta * (1 + _ROUNDING), side="right")) - 1)


def highest_rate(num_flagged: int, num_groups: int, *, delta: float = DELTA) -> float:
    """Return the rate that flagged groups leave possible, at a confidence of 1 - delta."""
    if num_flagged >= num_groups:
        return 1.0
    return float(betaincinv(num_flagged + 1, num_groups - num_flagged, 1 - delta))


def least_rate(num_flagged: int, num_groups: int, *, delta: float = DELTA) -> float:
    """Return the rate that flagged groups prove, at a confidence of 1 - delta."""
    if num_flagged == 0:
        return 0.0
    return float(betaincinv(num_flagged, num_groups - num_flagged + 1, delta))
