"""Turns the scores of validation prompts into thresholds and probabilities.

A threshold is for a stated false-positive rate on benign prompts like the calibration set. Prompts
of one group are no independent evidence, so a group counts once, by its highest score. The
threshold is the split-conformal one: a new benign group exceeds it with a probability of at most
the rate, whatever the scores' distribution.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from demur.core.artifacts import Calibration, Threshold
from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array

STANDARD_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def num_groups_needed(fpr: float) -> int:
    """Return the least number of benign groups that supports a false-positive rate.

    With fewer, even no false positive at all would leave the rate open at 95% confidence:
    n >= ln(0.05) / ln(1 - rate).

    Raises:
        ConfigError: The rate is not between 0 and 1.

    >>> num_groups_needed(0.01), num_groups_needed(0.001)
    (299, 2995)
    """
    if not 0 < fpr < 1:
        raise ConfigError(f"the false-positive rate is {fpr}: expected more than 0, less than 1")
    return math.ceil(math.log(0.05) / math.log1p(-fpr))


def supported_rates(num_groups: int) -> tuple[float, ...]:
    """Return the standard rates that a number of benign groups supports, lowest first.

    >>> supported_rates(300)
    (0.01, 0.02, 0.05, 0.1)
    """
    return tuple(rate for rate in STANDARD_RATES if num_groups_needed(rate) <= num_groups)


def calibrate(
    scores: Array,
    unsafe: Array,
    group: Array,
    *,
    rates: Sequence[float],
    calibrated_on: str,
    default_fpr: float,
) -> Calibration:
    """Return thresholds for false-positive rates, and a map from scores to probabilities.

    Args:
        scores: Of validation prompts, [prompt].
        unsafe: [prompt], true for unsafe.
        group: [prompt].
        rates: False-positive rates, each between 0 and 1.
        calibrated_on: What the benign prompts are, in words.
        default_fpr: One of the rates.

    Raises:
        ConfigError: There are too few benign groups for a rate, or the default is not a rate.
        DataError: A score is not finite, or a label is missing.
    """
    unsafe = unsafe.astype(bool)
    if default_fpr not in rates:
        raise ConfigError(f"the default rate {default_fpr} is not among the rates {tuple(rates)}")
    if not np.isfinite(scores).all():
        raise DataError("a validation score is not finite: the thresholds would mean nothing")
    if unsafe.all() or not unsafe.any():
        raise DataError("calibration needs safe and unsafe validation prompts")
    highest = _highest_of_groups(scores[~unsafe], group[~unsafe])
    slope, intercept = platt(scores, unsafe)
    return Calibration(
        thresholds=tuple(_threshold(highest, fpr) for fpr in rates),
        slope=slope,
        intercept=intercept,
        calibrated_on=calibrated_on,
        default_fpr=default_fpr,
    )


def _highest_of_groups(scores: Array, group: Array) -> Array:
    """Return the highest score of each group, highest first."""
    _, places = np.unique(group, return_inverse=True)
    highest = np.full(places.max() + 1, -np.inf)
    np.maximum.at(highest, places, scores)
    return np.sort(highest)[::-1]


def _threshold(highest: Array, fpr: float) -> Threshold:
    num_groups = len(highest)
    needed = num_groups_needed(fpr)
    if num_groups < needed:
        raise ConfigError(
            f"a false-positive rate of {fpr} needs {needed} benign groups, got {num_groups}: add "
            f"benign prompts, or ask for one of {supported_rates(num_groups)}"
        )
    # Split conformal: at most floor((n + 1) * rate) - 1 of n groups may be flagged. The small
    # addend keeps a product such as 300 * 0.01 from falling below the whole number that it is.
    allowed = max(0, math.floor((num_groups + 1) * fpr + 1e-9) - 1)
    threshold = float(np.nextafter(highest[allowed], np.inf))
    num_flagged = int((highest >= threshold).sum())
    interval = binomtest(num_flagged, num_groups).proportion_ci(0.95, method="exact")
    return Threshold(
        fpr=fpr,
        threshold=threshold,
        realised_fpr=num_flagged / num_groups,
        interval=(float(interval.low), float(interval.high)),
        num_groups=num_groups,
    )


def platt(scores: Array, unsafe: Array) -> tuple[float, float]:
    """Return slope and intercept of sigmoid(slope * score + intercept), for even odds.

    Platt's smoothed targets, each as two weighted labels, keep the slope finite where the scores
    separate the labels. Both labels weigh the same: a probability of one half is even evidence.
    """
    num_unsafe, num_safe = int(unsafe.sum()), int((~unsafe).sum())
    target = np.where(unsafe, (num_unsafe + 1) / (num_unsafe + 2), 1 / (num_safe + 2))
    share = np.where(unsafe, 0.5 / num_unsafe, 0.5 / num_safe)
    centre, spread = scores.mean(), scores.std() or 1.0
    standardised = ((scores - centre) / spread)[:, None]
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(
        np.concatenate([standardised, standardised]),
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([share * target, share * (1 - target)]) * len(scores),
    )
    slope = float(model.coef_[0, 0] / spread)
    return slope, float(model.intercept_[0] - slope * centre)
