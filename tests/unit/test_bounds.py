"""Binomial bounds against SciPy's binomial distribution, and against planted scores."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from demur.core.artifacts import Guarantee, Threshold
from demur.core.errors import ConfigError
from demur.core.readings import Array
from demur.guard.bounds import (
    flags_allowed,
    highest_rate,
    least_rate,
    lowest_rate,
    num_groups_needed,
)
from demur.guard.calibration import (
    STANDARD_RATES,
    Promise,
    threshold_for,
    threshold_for_sources,
)

PAGE = Path(__file__).parents[2] / "docs" / "promise.md"
NUM_DRAWS = 1000
DELTA = 0.2
TOLERATED = DELTA + 3 * (DELTA * (1 - DELTA) / NUM_DRAWS) ** 0.5
"""Share of draws in which a promise may fail, three standard errors included."""


def drawn(generator: np.random.Generator, number: int) -> Array:
    scores: Array = generator.standard_normal(number)
    return scores


@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    ("num_groups", "fpr"),
    [(5000, 0.001), (500, 0.01), (1000, 0.01), (299, 0.05), (1000, 0.05), (299, 0.3)],
)
def test_one_flag_more_would_break_the_binomial_promise(
    num_groups: int, fpr: float, delta: float
) -> None:
    allowed = flags_allowed(num_groups, fpr, delta=delta)
    assert binom.cdf(allowed, num_groups, fpr) <= delta < binom.cdf(allowed + 1, num_groups, fpr)


@pytest.mark.parametrize("guarantee", ["binomial", "conformal"])
@pytest.mark.parametrize("num_groups", [20, 59, 99, 200, 1000])
def test_the_lowest_rate_is_the_one_that_needs_all_groups(
    num_groups: int, guarantee: Guarantee
) -> None:
    lowest = lowest_rate(num_groups, guarantee=guarantee)
    assert num_groups_needed(lowest, guarantee=guarantee) == num_groups
    assert num_groups_needed(0.999 * lowest, guarantee=guarantee) > num_groups


@pytest.mark.parametrize(("num_flagged", "num_groups"), [(0, 50), (3, 200), (49, 50), (50, 50)])
def test_rates_are_the_ends_of_clopper_and_pearsons_interval(
    num_flagged: int, num_groups: int
) -> None:
    interval = binomtest(num_flagged, num_groups).proportion_ci(0.9, method="exact")
    assert least_rate(num_flagged, num_groups) == pytest.approx(interval.low, abs=1e-12)
    assert highest_rate(num_flagged, num_groups) == pytest.approx(interval.high, abs=1e-12)


@pytest.mark.parametrize("fpr", [0.02, 0.05])
def test_the_true_rate_exceeds_the_bound_in_a_share_delta_of_draws(fpr: float) -> None:
    generator, groups = np.random.default_rng(0), np.arange(200)
    thresholds = [
        threshold_for(drawn(generator, 200), groups, fpr, promise=Promise(delta=DELTA))
        for _ in range(NUM_DRAWS)
    ]
    share = np.mean([norm.sf(t.threshold) > float(t.bound or 0) for t in thresholds])
    assert DELTA - (TOLERATED - DELTA) <= share <= TOLERATED
    assert all(t.bound is not None and t.bound <= fpr for t in thresholds)


@pytest.mark.parametrize("unsafe_score", [-9.0, 0.0, 9.0])
def test_unlabelled_traffic_keeps_the_rate_whatever_its_unsafe_prompts_score(
    unsafe_score: float,
) -> None:
    contamination, fpr = 0.1, 0.05
    promise = Promise(delta=DELTA, contamination=contamination)
    generator, rates = np.random.default_rng(1), []
    for _ in range(NUM_DRAWS):
        scores = drawn(generator, 300)
        scores[generator.random(300) < contamination] = unsafe_score
        rates.append(norm.sf(threshold_for(scores, np.arange(300), fpr, promise=promise).threshold))
    assert np.mean(np.array(rates) > fpr) <= TOLERATED


def test_the_rate_is_kept_in_all_parts_at_once() -> None:
    part = np.repeat(["short", "long"], 150)
    generator, failures = np.random.default_rng(2), 0
    for _ in range(NUM_DRAWS):
        scores = drawn(generator, 300)
        threshold = threshold_for_sources(
            scores, part, np.arange(300), 0.05, promise=Promise(delta=DELTA)
        ).threshold
        failures += norm.sf(threshold) > 0.05
    assert failures / NUM_DRAWS <= TOLERATED


def test_parts_of_other_scores_get_the_threshold_of_the_highest() -> None:
    part = np.repeat(["short", "long"], 150)
    scores = drawn(np.random.default_rng(3), 300) + 5.0 * (part == "long")
    together = threshold_for_sources(scores, part, np.arange(300), 0.05)
    alone = threshold_for(scores[150:], np.arange(150), 0.05, promise=Promise(delta=0.025))
    assert (together.threshold, together.bound) == (alone.threshold, alone.bound)
    assert together.holds_in == ("long", "short")
    assert "in each of: long; short" in together.promise


def test_a_part_with_too_few_groups_is_named() -> None:
    part = np.repeat(["short", "long"], [250, 50])
    with pytest.raises(ConfigError, match="needs 72 benign groups in 'long', got 50"):
        threshold_for_sources(np.zeros(300), part, np.arange(300), 0.05)


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        (Promise(), "needs 299 benign groups, got 200.*from 0.0149 on.*with 95% confidence"),
        (Promise(delta=0.01), "needs 459 benign groups, got 200.*with 99% confidence"),
        (Promise(contamination=0.02), "needs 305 unlabelled groups, got 200.*from 0.0152 on"),
    ],
)
def test_too_few_groups_are_told_what_they_can_promise(promise: Promise, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        promise.require_supported(0.01, 200)


def test_a_conformal_rate_needs_fewer_groups() -> None:
    conformal = Promise(guarantee="conformal")
    conformal.require_supported(0.01, 99)
    with pytest.raises(ConfigError, match=r"needs 99 benign groups, got 98.*0\.0102 on.*average"):
        conformal.require_supported(0.01, 98)


def test_no_groups_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="got none: add prompts"):
        Promise().require_supported(0.5, 0)


@pytest.mark.parametrize(
    ("delta", "contamination", "words"), [(0.0, 0.0, "delta is 0"), (0.05, 1.0, "contamination")]
)
def test_a_promise_out_of_range_is_refused(delta: float, contamination: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Promise(delta=delta, contamination=contamination)


def promise_of(promise: Promise) -> Threshold:
    return threshold_for(np.arange(1000.0), np.arange(1000), 0.05, promise=promise)


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        (Promise(), "at most 0.05 of benign prompts flagged, with 95% confidence"),
        (Promise("conformal"), "at most 0.05 of benign prompts flagged, on average over calib"),
        (Promise(contamination=0.02), "confidence, if at most 0.02 of the traffic was unsafe"),
    ],
)
def test_a_threshold_says_what_it_promises(promise: Promise, words: str) -> None:
    assert words in promise_of(promise).promise


def test_the_promise_page_says_how_many_prompts_a_rate_needs() -> None:
    rows = re.findall(r"^\| ([\d.]+)% \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.M)
    assert [float(row[0]) / 100 for row in rows] == pytest.approx(sorted(STANDARD_RATES)[::-1])
    for rate, binomial, contaminated, conformal in rows:
        fpr = float(rate) / 100
        assert int(binomial) == num_groups_needed(fpr)
        assert int(contaminated) == num_groups_needed(0.98 * fpr)
        assert int(conformal) == num_groups_needed(fpr, guarantee="conformal")
