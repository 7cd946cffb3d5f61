"""Metrics and their intervals against scikit-learn, SciPy, and sums by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.core.registry import methods
from demur.metrics.auroc import auroc
from demur.metrics.calibration_error import calibration_error
from demur.metrics.f1 import f1
from demur.metrics.flagged_rate import flagged_rate
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.metrics.recall_at_fpr import recall_at_fpr
from demur.metrics.reliability import Reliability
from demur.metrics.wilson_interval import wilson_interval

NUM_PROMPTS = 300
OF_LABELS: dict[str, Callable[[Array, Array], float | None]] = {
    "auroc": auroc,
    "calibration_error": calibration_error,
    "f1": lambda scores, unsafe: f1(scores, unsafe, threshold=0.5),
    "recall_at_fpr": lambda scores, unsafe: recall_at_fpr(scores, unsafe, fpr=0.1),
}
"""The metrics that look at labels, of scores that are probabilities."""
OTHERS = {
    "attack_success_rate", "cohen_kappa", "flagged_rate", "group_bootstrap", "over_refusal_rate",
    "precision_recall", "reliability", "wilson_interval",
}  # fmt: skip


def scored(seed: int, *, digits: int = 1) -> tuple[Array, Array]:
    """Return scores from 0 to 1 with many ties, and labels that they tell something of."""
    generator = np.random.default_rng(seed)
    unsafe = generator.random(NUM_PROMPTS) < 0.3
    scores = norm.cdf(generator.standard_normal(NUM_PROMPTS) + unsafe)
    return scores.round(digits), unsafe


def test_every_metric_is_tested_here() -> None:
    assert {*OF_LABELS, *OTHERS} == set(methods("metrics"))


@pytest.mark.parametrize("name", OF_LABELS)
def test_the_order_of_prompts_does_not_matter(name: str) -> None:
    scores, unsafe = scored(0)
    mixed = np.random.default_rng(1).permutation(NUM_PROMPTS)
    value = OF_LABELS[name](scores, unsafe)
    assert value is not None
    assert OF_LABELS[name](scores[mixed], unsafe[mixed]) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", OF_LABELS)
def test_there_is_no_number_without_unsafe_prompts(name: str) -> None:
    scores, unsafe = scored(0)
    assert OF_LABELS[name](scores[~unsafe], unsafe[~unsafe]) is None


@pytest.mark.parametrize("name", sorted(OF_LABELS.keys() - {"f1"}))
def test_there_is_no_number_without_safe_prompts(name: str) -> None:
    scores, unsafe = scored(0)
    assert OF_LABELS[name](scores[unsafe], unsafe[unsafe]) is None


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_between_0_and_1(name: str, seed: int) -> None:
    value = OF_LABELS[name](*scored(seed))
    assert value is not None
    assert 0 <= value <= 1


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn(seed: int) -> None:
    scores, unsafe = scored(seed)
    assert auroc(scores, unsafe) == pytest.approx(roc_auc_score(unsafe, scores), abs=1e-12)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_recall_is_the_best_of_the_roc_curve_at_no_more_than_the_rate(
    fpr: float, seed: int
) -> None:
    scores, unsafe = scored(seed, digits=2)
    found_fpr, recall, _ = roc_curve(unsafe, scores, drop_intermediate=False)
    best = recall[found_fpr <= fpr].max()
    assert recall_at_fpr(scores, unsafe, fpr=fpr) == pytest.approx(best, abs=1e-12)


def test_recall_needs_one_safe_prompt_that_may_be_flagged() -> None:
    unsafe = np.array([False] * 999 + [True])
    scores = np.arange(1000.0)
    assert recall_at_fpr(scores, unsafe, fpr=0.001) is None
    unsafe, scores = np.append(unsafe, False), np.append(scores, -1.0)
    assert recall_at_fpr(scores, unsafe, fpr=0.001) == 1


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, math.nan])
def test_rates_outside_0_and_1_are_refused(fpr: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        recall_at_fpr(*scored(0), fpr=fpr)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_f1_is_that_of_scikit_learn_for_the_unsafe_label(threshold: float) -> None:
    scores, unsafe = scored(0)
    expected = f1_score(unsafe, scores >= threshold)
    assert f1(scores, unsafe, threshold=threshold) == pytest.approx(expected, abs=1e-12)


def test_a_score_at_the_threshold_is_flagged() -> None:
    assert flagged_rate(np.array([0.0, 0.5, 1.0, 1.0]), threshold=0.5) == 0.75


def test_no_scores_have_no_rate() -> None:
    assert flagged_rate(np.zeros(0), threshold=0.5) is None


def test_reliability_bins_hold_equal_numbers_where_labels_are_even() -> None:
    generator = np.random.default_rng(0)
    probability = np.sort(generator.random(120))
    unsafe = generator.permutation(np.arange(120) % 2 == 0)
    bins = Reliability.of(probability, unsafe, num_bins=6)
    assert bins is not None
    assert bins.mass == pytest.approx([1 / 6] * 6)
    assert bins.predicted == pytest.approx([part.mean() for part in np.split(probability, 6)])
    assert bins.observed == pytest.approx([part.mean() for part in np.split(unsafe, 6)])


def test_both_labels_weigh_the_same_in_reliability() -> None:
    probability = np.array([0.3] * 9 + [0.3] * 1)
    bins = Reliability.of(probability, np.arange(10) == 0)
    assert bins is not None
    assert bins.observed == pytest.approx([0.5])


def test_equal_probabilities_stand_in_one_bin() -> None:
    probability = np.repeat([0.2, 0.8], 50)
    bins = Reliability.of(probability, np.arange(100) % 2 == 0)
    assert bins is not None
    assert bins.predicted == pytest.approx([0.2, 0.8])


def test_calibration_error_is_the_weighted_distance_from_the_diagonal() -> None:
    probability, unsafe = np.array([0.1, 0.1, 0.6, 0.6]), np.array([False, True, False, True])
    assert calibration_error(probability, unsafe) == pytest.approx((0.4 + 0.1) / 2)


def test_true_probabilities_are_nearly_calibrated() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(20_000)
    unsafe = generator.random(20_000) < probability
    error = calibration_error(probability, unsafe)
    assert error is not None
    assert error < 0.02
    shifted = calibration_error(probability**2, unsafe)
    assert shifted is not None
    assert shifted > 0.1


@pytest.mark.parametrize("metric", [calibration_error, Reliability.of])
def test_no_bins_are_refused(metric: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="num_bins is 0"):
        metric(*scored(0), num_bins=0)


@pytest.mark.parametrize(("flagged", "number"), [(0, 20), (3, 20), (20, 20), (7, 500)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_independent_prompts_is_wilsons(
    flagged: int, number: int, level: float
) -> None:
    expected = binomtest(flagged, number).proportion_ci(level, method="wilson")
    found = wilson_interval(np.arange(number) < flagged, np.arange(number), level=level)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("flagged", [0, 4, 12])
def test_copies_of_a_prompt_add_nothing_to_what_is_known(flagged: int) -> None:
    flags = np.arange(12) < flagged
    once = wilson_interval(flags, np.arange(12))
    copied = wilson_interval(np.repeat(flags, 10), np.repeat(np.arange(12), 10))
    assert copied == pytest.approx(once)


def test_groups_that_are_no_more_alike_than_others_cost_nothing() -> None:
    flags, group = np.tile([True, False], 30), np.repeat(np.arange(30), 2)
    assert wilson_interval(flags, group) == pytest.approx(wilson_interval(flags, np.arange(60)))


def test_no_prompts_have_no_interval() -> None:
    assert wilson_interval(np.zeros(0, bool), np.zeros(0, int)) is None


def means(values: Array) -> dict[str, Callable[[Array], float | None]]:
    return {"mean": lambda rows: float(values[rows].mean()) if len(rows) else None}


def names(numbers: Array) -> Array:
    return np.array([f"g{number}" for number in numbers])


def test_draws_of_single_prompts_spread_as_the_standard_error_says() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    group = names(np.arange(200))
    draws = GroupBootstrap([group], num_draws=4000).draws(means(values), group)["mean"]
    assert draws.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_whole_groups_are_drawn() -> None:
    values = np.repeat(np.random.default_rng(0).standard_normal(40), 5)
    group = names(np.repeat(np.arange(40), 5))
    draws = GroupBootstrap([group], num_draws=4000).draws(means(values), group)["mean"]
    assert draws.std() == pytest.approx(values.std() / math.sqrt(40), rel=0.05)


def test_a_group_of_two_sets_is_drawn_as_often_in_both() -> None:
    shared, other = names(np.arange(10)), names(np.arange(5, 15))
    bootstrap = GroupBootstrap([shared, other], num_draws=50)
    for rows, other_rows in zip(bootstrap.rows(shared), bootstrap.rows(other), strict=True):
        both = {f"g{number}" for number in range(5, 10)}
        counted = sorted(name for name in shared[rows].tolist() if name in both)
        assert counted == sorted(name for name in other[other_rows].tolist() if name in both)
        assert len(rows) == len(other_rows) == 10


def test_statistics_of_one_call_see_the_same_draws() -> None:
    group = names(np.arange(50))
    values = np.random.default_rng(0).standard_normal(50)
    bootstrap = GroupBootstrap([group], num_draws=100)
    found = bootstrap.draws(
        {"one": lambda rows: values[rows].sum(), "two": lambda rows: values[rows].sum() + 3},
        group,
    )
    assert found["two"] - found["one"] == pytest.approx([3.0] * 100)


def test_draws_follow_from_the_seed() -> None:
    group = names(np.arange(20))
    first, again, other = (
        [rows.tolist() for rows in GroupBootstrap([group], num_draws=5, seed=seed).rows(group)]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_an_interval_holds_its_share_of_the_draws() -> None:
    draws = np.random.default_rng(0).standard_normal(20_000)
    found = GroupBootstrap.interval(draws, level=0.9)
    assert found == pytest.approx((norm.ppf(0.05), norm.ppf(0.95)), abs=0.05)


def test_there_is_no_interval_where_most_draws_have_no_value() -> None:
    draws = np.array([math.nan, math.nan, math.nan, 1.0, 2.0])
    assert GroupBootstrap.interval(draws) is None
    assert GroupBootstrap.interval(draws[2:]) == pytest.approx((1.025, 1.975))


def test_a_statistic_without_a_value_leaves_a_gap() -> None:
    group = names(np.arange(3))
    found = GroupBootstrap([group], num_draws=4).draws({"none": lambda rows: None}, group)
    assert np.isnan(found["none"]).all()


def test_unknown_groups_and_no_draws_are_refused() -> None:
    bootstrap = GroupBootstrap([names(np.arange(3))], num_draws=2)
    with pytest.raises(DataError, match="group 'g7' is in none of the sets"):
        list(bootstrap.rows(names(np.array([7]))))
    with pytest.raises(ConfigError, match="num_draws is 0"):
        GroupBootstrap([], num_draws=0)
