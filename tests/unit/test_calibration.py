"""Thresholds keep their stated false-positive rate; probabilities are calibrated at even odds."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import beta, norm

from demur.core.artifacts import Calibration
from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.core.readout import sigmoid
from demur.guard.bounds import num_groups_needed
from demur.guard.calibration import STANDARD, STANDARD_RATES, Promise, calibrate, supported_rates

NUM_SAFE = 400
CONFORMAL = Promise(guarantee="conformal")


def normal_scores(num_safe: int = NUM_SAFE, num_unsafe: int = 50, *, seed: int = 0) -> Array:
    """Return scores, the safe ones first: standard normal ones around 0 and around 2."""
    scores = np.random.default_rng(seed).standard_normal(num_safe + num_unsafe)
    scores[num_safe:] += 2
    return scores


def calibrated(
    scores: Array,
    *,
    num_safe: int = NUM_SAFE,
    group: Array | None = None,
    rates: tuple[float, ...] = (0.05,),
    default_fpr: float | None = None,
    promise: Promise = STANDARD,
) -> Calibration:
    """Return the calibration of scores of which the first are of safe prompts."""
    return calibrate(
        scores,
        np.arange(len(scores)) >= num_safe,
        np.arange(len(scores)) if group is None else group,
        rates=rates,
        calibrated_on="a normal distribution",
        default_fpr=rates[0] if default_fpr is None else default_fpr,
        promise=promise,
    )


def probability(calibration: Calibration, score: float) -> float:
    return sigmoid(calibration.slope * score + calibration.intercept)


def clopper_pearson(num_flagged: int, num_groups: int) -> tuple[float, float]:
    low = beta.ppf(0.025, num_flagged, num_groups - num_flagged + 1) if num_flagged else 0.0
    return float(low), float(beta.ppf(0.975, num_flagged + 1, num_groups - num_flagged))


@pytest.mark.parametrize(("fpr", "needed"), [(0.01, 299), (0.001, 2995), (0.05, 59), (0.5, 5)])
def test_a_rate_needs_enough_groups_that_none_flagged_would_prove_it(
    fpr: float, needed: int
) -> None:
    assert num_groups_needed(fpr) == needed
    assert (1 - fpr) ** needed <= 0.05 < (1 - fpr) ** (needed - 1)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_that_is_none_is_refused(fpr: float) -> None:
    with pytest.raises(ConfigError, match="false-positive rate"):
        num_groups_needed(fpr)


def test_a_rate_is_supported_from_the_number_of_groups_on_that_it_needs() -> None:
    for rate in STANDARD_RATES:
        assert rate in supported_rates(num_groups_needed(rate))
        assert rate not in supported_rates(num_groups_needed(rate) - 1)


def test_too_few_groups_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ConfigError, match="needs 299 benign groups, got 298") as refused:
        calibrated(normal_scores(298), num_safe=298, rates=(0.01,))
    assert "(0.02, 0.05, 0.1)" in str(refused.value)


def test_just_enough_groups_are_accepted() -> None:
    assert calibrated(normal_scores(299), num_safe=299, rates=(0.01,)).at(0.01).num_groups == 299


def test_prompts_of_one_group_do_not_count_as_several() -> None:
    group = np.arange(NUM_SAFE + 50) // 2
    with pytest.raises(ConfigError, match="needs 299 benign groups, got 200"):
        calibrated(normal_scores(), group=group, rates=(0.01,))


def test_a_group_counts_by_its_highest_score() -> None:
    scores = normal_scores()
    highest = scores[:NUM_SAFE].reshape(-1, 4).max(1)
    grouped = calibrated(scores, group=np.arange(len(scores)) // 4).at(0.05)
    alone = calibrated(np.concatenate([highest, scores[NUM_SAFE:]]), num_safe=len(highest)).at(0.05)
    assert grouped == alone


def test_group_names_may_be_texts_in_any_order() -> None:
    scores = normal_scores()
    numbers = np.arange(len(scores)) // 4
    order = np.random.default_rng(0).permutation(NUM_SAFE)
    shuffled = np.concatenate([scores[order], scores[NUM_SAFE:]])
    names = np.char.add("group ", np.concatenate([numbers[order], numbers[NUM_SAFE:]]).astype(str))
    assert calibrated(shuffled, group=names).at(0.05) == calibrated(scores, group=numbers).at(0.05)


def test_scores_of_unsafe_prompts_do_not_move_a_threshold() -> None:
    scores = normal_scores()
    moved = scores.copy()
    moved[NUM_SAFE:] *= -3
    assert calibrated(scores).thresholds == calibrated(moved).thresholds


@pytest.mark.parametrize("num_groups", [299, 300, 399, 777])
@pytest.mark.parametrize("fpr", [0.01, 0.02, 0.05, 0.1])
def test_the_realised_rate_is_at_most_the_rate_asked_for(num_groups: int, fpr: float) -> None:
    scores = normal_scores(num_groups)
    threshold = calibrated(scores, num_safe=num_groups, rates=(fpr,)).at(fpr)
    realised = float((scores[:num_groups] >= threshold.threshold).mean())
    assert threshold.realised_fpr == realised
    assert realised <= fpr


@pytest.mark.parametrize("num_levels", [1, 2, 5, 30])
def test_tied_scores_never_exceed_the_rate(num_levels: int) -> None:
    scores = normal_scores()
    scores[:NUM_SAFE] = np.arange(NUM_SAFE) % num_levels
    threshold = calibrated(scores).at(0.05)
    assert float((scores[:NUM_SAFE] >= threshold.threshold).mean()) <= 0.05


def test_a_lower_rate_has_a_higher_threshold() -> None:
    rates = (0.01, 0.02, 0.05, 0.1)
    thresholds = [t.threshold for t in calibrated(normal_scores(), rates=rates).thresholds]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 4


@pytest.mark.parametrize(("num_groups", "expected"), [(99, 5 / 100), (75, 3 / 76)])
def test_a_new_benign_prompt_exceeds_the_threshold_at_the_conformal_rate(
    num_groups: int, expected: float
) -> None:
    rates = [
        norm.sf(calibrated(scores, num_safe=num_groups, promise=CONFORMAL).at(0.05).threshold)
        for scores in (normal_scores(num_groups, 5, seed=seed) for seed in range(200))
    ]
    error = float(np.std(rates)) / math.sqrt(len(rates))
    assert expected <= 0.05
    assert float(np.mean(rates)) == pytest.approx(expected, abs=3 * error)


def test_a_new_benign_group_exceeds_the_threshold_at_the_conformal_rate() -> None:
    rates = []
    for seed in range(200):
        scores = normal_scores(99 * 3, 5, seed=seed)
        group = np.arange(len(scores)) // 3
        found = calibrated(scores, num_safe=99 * 3, group=group, promise=CONFORMAL)
        rates.append(1 - norm.cdf(found.at(0.05).threshold) ** 3)
    error = float(np.std(rates)) / math.sqrt(len(rates))
    assert float(np.mean(rates)) == pytest.approx(0.05, abs=3 * error)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
def test_the_interval_is_that_of_clopper_and_pearson(fpr: float) -> None:
    threshold = calibrated(normal_scores(), rates=(fpr,), promise=CONFORMAL).at(fpr)
    num_flagged = round(threshold.realised_fpr * NUM_SAFE)
    assert num_flagged > 0
    assert threshold.interval == pytest.approx(clopper_pearson(num_flagged, NUM_SAFE), rel=1e-9)


def test_the_interval_of_no_false_positive_begins_at_zero() -> None:
    scores = normal_scores()
    scores[:NUM_SAFE] = 0
    threshold = calibrated(scores).at(0.05)
    assert threshold.realised_fpr == 0
    assert threshold.interval == pytest.approx(clopper_pearson(0, NUM_SAFE), rel=1e-9)


def test_probability_rises_with_the_score() -> None:
    calibration = calibrated(normal_scores())
    probabilities = [probability(calibration, score) for score in np.linspace(-5, 7, 50)]
    assert all(low < high for low, high in pairwise(probabilities))


@pytest.mark.parametrize("num_unsafe", [40, 400, 4000])
def test_probability_is_one_half_where_the_evidence_is_even(num_unsafe: int) -> None:
    quantiles = norm.ppf((np.arange(NUM_SAFE) + 0.5) / NUM_SAFE)
    unsafe = norm.ppf((np.arange(num_unsafe) + 0.5) / num_unsafe)
    calibration = calibrated(np.concatenate([quantiles - 1, unsafe + 1]))
    assert probability(calibration, 0.0) == pytest.approx(0.5, abs=0.03)


def test_probability_is_that_of_the_normal_distributions_that_it_was_fitted_on() -> None:
    quantiles = norm.ppf((np.arange(4000) + 0.5) / 4000)
    calibration = calibrated(np.concatenate([quantiles, quantiles + 2]), num_safe=4000)
    assert calibration.slope == pytest.approx(2, rel=0.02)
    assert calibration.intercept == pytest.approx(-2, rel=0.02)


def test_scores_that_separate_the_labels_have_a_finite_slope() -> None:
    calibration = calibrated(np.concatenate([np.full(NUM_SAFE, -1.0), np.full(50, 1.0)]))
    assert 0 < calibration.slope < 20
    assert 0.9 < probability(calibration, 1.0) < 1


def test_scores_in_other_units_have_the_same_probabilities() -> None:
    scores = normal_scores()
    plain, scaled = calibrated(scores), calibrated(1e6 * scores + 5e6)
    for score in (-1.0, 0.0, 3.0):
        assert probability(scaled, 1e6 * score + 5e6) == pytest.approx(
            probability(plain, score), abs=1e-4
        )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, -1])
def test_a_score_that_is_not_finite_is_refused(broken: float, row: int) -> None:
    scores = normal_scores()
    scores[row] = broken
    with pytest.raises(DataError, match="not finite"):
        calibrated(scores)


@pytest.mark.parametrize("num_safe", [0, 450])
def test_one_label_alone_is_refused(num_safe: int) -> None:
    with pytest.raises(DataError, match="safe and unsafe"):
        calibrated(normal_scores(), num_safe=num_safe)


def test_a_rate_that_was_not_calibrated_is_refused_with_those_that_were() -> None:
    calibration = calibrated(normal_scores(), rates=(0.05, 0.1))
    with pytest.raises(ConfigError, match=r"0.01: calibrated rates are \[0.05, 0.1\]"):
        calibration.at(0.01)


def test_a_default_rate_that_is_not_calibrated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"default rate 0.01 is not among the rates \(0.05,\)"):
        calibrated(normal_scores(), default_fpr=0.01)
