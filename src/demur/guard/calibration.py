"""Turns the scores of validation prompts into thresholds and probabilities.

A threshold is for a stated false-positive rate on benign prompts like the calibration set. Prompts
of one group are no independent evidence, so a group counts once, by its highest score. What a
threshold promises is in `bounds`; `docs/promise.md` says it in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import LogisticRegression

from demur.core.artifacts import Calibration, Guarantee, Threshold
from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.guard.bounds import (
    DELTA,
    flags_allowed,
    highest_rate,
    least_rate,
    lowest_rate,
    num_groups_needed,
)
from demur.guard.drift import kept_ranks

STANDARD_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Promise:
    """What thresholds are to promise."""

    guarantee: Guarantee = "binomial"
    """See `Threshold.guarantee`."""
    delta: float = DELTA
    """Probability over draws of the calibration set that a `binomial` promise fails."""
    contamination: float = 0.0
    """The largest share of unsafe prompts in a calibration set without labels.

    If at most a share c of all traffic is unsafe, at least 1 - c of it is benign. Flagged benign
    prompts are no more than all flagged prompts; so the rate among benign ones is at most the rate
    of all, divided by 1 - c, and a threshold for (1 - c) fpr on all traffic keeps fpr on benign
    prompts. This holds whatever the unsafe ones score, none included, and is cautious. A group that
    holds an unsafe prompt counts as unsafe."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta}: expected more than 0, less than 1")
        if not 0 <= self.contamination < 1:
            raise ConfigError(
                f"the contamination is {self.contamination}: expected 0 or more, less than 1"
            )

    def require_supported(self, fpr: float, num_groups: int, *, among: str = "") -> None:
        """Refuse a rate that a number of groups cannot support.

        Args:
            fpr: The rate.
            num_groups: Of the calibration set.
            among: The part of the set that they stand in, for the message.

        Raises:
            ConfigError: There are too few; the message says what they do support.
        """
        clean = 1 - self.contamination
        needed = num_groups_needed(clean * fpr, guarantee=self.guarantee, delta=self.delta)
        if num_groups >= needed:
            return
        kind = "unlabelled" if self.contamination else "benign"
        asked = f"a false-positive rate of {fpr:g} needs {needed} {kind} groups{among}"
        if not num_groups:
            raise ConfigError(f"{asked}, got none: add prompts")
        least = lowest_rate(num_groups, guarantee=self.guarantee, delta=self.delta)
        lowest = math.ceil(1e4 * least / clean) / 1e4
        others = self.supported_rates(num_groups)
        choice = f"one of {others}, or " if others else ""
        raise ConfigError(
            f"{asked}, got {num_groups}: add prompts, or ask for {choice}any rate from {lowest:g} "
            f"on, the lowest that they can promise {self.certainty}"
        )

    @property
    def certainty(self) -> str:
        """How sure the promise is, in words."""
        if self.guarantee == "conformal":
            return "on average"
        return f"with {100 * (1 - self.delta):.4g}% confidence"

    def supported_rates(self, num_groups: int) -> tuple[float, ...]:
        """Return the standard rates that a number of groups supports, lowest first."""
        return tuple(
            rate
            for rate in STANDARD_RATES
            if num_groups_needed(
                (1 - self.contamination) * rate, guarantee=self.guarantee, delta=self.delta
            )
            <= num_groups
        )


STANDARD = Promise()


def supported_rates(num_groups: int) -> tuple[float, ...]:
    """Return the standard rates that a number of benign groups supports, lowest first.

    >>> supported_rates(300)
    (0.01, 0.02, 0.05, 0.1)
    """
    return STANDARD.supported_rates(num_groups)


def calibrate(
    scores: Array,
    unsafe: Array,
    group: Array,
    *,
    rates: Sequence[float],
    calibrated_on: str,
    default_fpr: float,
    promise: Promise = STANDARD,
) -> Calibration:
    """Return thresholds for false-positive rates, and a map from scores to probabilities.

    Args:
        scores: Of validation prompts, [prompt].
        unsafe: [prompt], true for unsafe.
        group: [prompt].
        rates: False-positive rates, each between 0 and 1.
        calibrated_on: What the benign prompts are, in words.
        default_fpr: One of the rates.
        promise: What the thresholds are to promise.

    Raises:
        ConfigError: There are too few benign groups for a rate, or the default is not a rate.
        DataError: A score is not finite, or a label is missing.
    """
    unsafe = unsafe.astype(bool)
    _require_finite(scores)
    if unsafe.all() or not unsafe.any():
        raise DataError("calibration needs safe and unsafe validation prompts")
    slope, intercept = platt(scores, unsafe)
    return recalibrate(
        Calibration((), slope, intercept, calibrated_on),
        scores[~unsafe],
        group[~unsafe],
        rates=rates,
        calibrated_on=calibrated_on,
        default_fpr=default_fpr,
        promise=promise,
    )


def recalibrate(
    earlier: Calibration,
    scores: Array,
    group: Array,
    *,
    rates: Sequence[float],
    calibrated_on: str,
    default_fpr: float,
    promise: Promise = STANDARD,
    part: Array | None = None,
) -> Calibration:
    """Return a calibration with the thresholds of other prompts; probabilities stay.

    Args:
        earlier: What probabilities are taken from: they need unsafe prompts too.
        scores: Of benign prompts (or of traffic, see `Promise.contamination`), [prompt].
        group: [prompt].
        rates: False-positive rates, each between 0 and 1.
        calibrated_on: What the prompts are, in words.
        default_fpr: One of the rates.
        promise: What the thresholds are to promise.
        part: Of the traffic, [prompt], where the rates are to be kept in each part by itself.

    Raises:
        ConfigError: There are too few groups for a rate, or the default is not a rate.
        DataError: A score is not finite, or there is none.
    """
    if default_fpr not in rates:
        raise ConfigError(f"the default rate {default_fpr} is not among the rates {tuple(rates)}")
    _require_finite(scores)
    one_a_group = np.sort(scores[np.unique(group, return_index=True)[1]])
    kept = one_a_group[kept_ranks(len(one_a_group))].astype(np.float32)
    return replace(
        earlier,
        thresholds=tuple(
            threshold_for(scores, group, fpr, promise=promise)
            if part is None
            else threshold_for_sources(scores, part, group, fpr, promise=promise)
            for fpr in rates
        ),
        calibrated_on=calibrated_on,
        default_fpr=default_fpr,
        reference=tuple(float(str(score)) for score in kept),  # the shortest text of a float32
        num_reference=len(one_a_group),
    )


def _require_finite(scores: Array) -> None:
    if not len(scores):
        raise DataError("there are no prompts to calibrate on: give at least one")
    if not np.isfinite(scores).all():
        raise DataError("a validation score is not finite: the thresholds would mean nothing")


def threshold_for(
    scores: Array, group: Array, fpr: float, *, promise: Promise = STANDARD
) -> Threshold:
    """Return the threshold for a false-positive rate.

    Args:
        scores: Of benign prompts (or of traffic, see `Promise.contamination`), [prompt].
        group: [prompt]; a group counts once, by its highest score.
        fpr: The rate, between 0 and 1.
        promise: What the threshold is to promise.

    Raises:
        ConfigError: There are too few groups.
    """
    highest = _highest_of_groups(scores, group)
    promise.require_supported(fpr, len(highest))
    return _threshold(highest, fpr, promise)


def threshold_for_sources(
    scores: Array, source: Array, group: Array, fpr: float, *, promise: Promise = STANDARD
) -> Threshold:
    """Return the threshold that keeps a false-positive rate in every source by itself.

    It is the highest of the thresholds of single sources, each with its share of delta, so that the
    promise holds for all of them at once.

    Args:
        scores: Of benign prompts, [prompt].
        source: Or any other part of the traffic, [prompt].
        group: [prompt].
        fpr: The rate, between 0 and 1.
        promise: What the threshold is to promise.

    Raises:
        ConfigError: There are too few groups in a source.
    """
    names = np.unique(source)
    shared = replace(promise, delta=promise.delta / len(names))
    of_sources = []
    for name in names:
        rows = source == name
        highest = _highest_of_groups(scores[rows], group[rows])
        shared.require_supported(fpr, len(highest), among=f" in {str(name)!r}")
        of_sources.append(_threshold(highest, fpr, shared))
    overall = _at(
        _highest_of_groups(scores, group),
        fpr,
        max(threshold.threshold for threshold in of_sources),
    )
    is_bounded = promise.guarantee == "binomial"
    return replace(
        overall,
        guarantee=promise.guarantee,
        delta=promise.delta if is_bounded else None,
        bound=max(t.bound for t in of_sources if t.bound is not None) if is_bounded else None,
        contamination=promise.contamination,
        holds_in=tuple(str(name) for name in names),
    )


def _highest_of_groups(scores: Array, group: Array) -> Array:
    """Return the highest score of each group, highest first."""
    _, places = np.unique(group, return_inverse=True)
    highest = np.full(places.max() + 1, -np.inf)
    np.maximum.at(highest, places, scores)
    return np.sort(highest)[::-1]


def _threshold(highest: Array, fpr: float, promise: Promise) -> Threshold:
    clean, num_groups = 1 - promise.contamination, len(highest)
    allowed = flags_allowed(
        num_groups, clean * fpr, guarantee=promise.guarantee, delta=promise.delta
    )
    threshold = _at(highest, fpr, float(np.nextafter(highest[allowed], np.inf)))
    if promise.guarantee == "conformal":
        return replace(threshold, contamination=promise.contamination)
    return replace(
        threshold,
        guarantee="binomial",
        delta=promise.delta,
        bound=highest_rate(allowed, num_groups, delta=promise.delta) / clean,
        contamination=promise.contamination,
    )


def _at(highest: Array, fpr: float, threshold: float) -> Threshold:
    """Return a threshold with what it does to the calibration groups."""
    num_flagged, num_groups = int((highest >= threshold).sum()), len(highest)
    return Threshold(
        fpr=fpr,
        threshold=threshold,
        realised_fpr=num_flagged / num_groups,
        interval=(
            least_rate(num_flagged, num_groups, delta=0.025),
            highest_rate(num_flagged, num_groups, delta=0.025),
        ),
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
