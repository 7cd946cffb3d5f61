"""The linear ensemble: its members against the detectors that fit them alone."""

from dataclasses import replace

import numpy as np
import pytest

from demur.core.errors import ConfigError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.detectors.linear import Linear
from demur.detectors.linear_ensemble import LinearEnsemble
from demur.detectors.prototypes import Prototypes

LAST = CaptureSpec((1, 3))
MEAN = CaptureSpec((1, 3), "user", pool="mean")
NUM_PROMPTS, D_MODEL = 80, 6


def made_up(seed: int = 0) -> tuple[Readings, Targets]:
    draw = np.random.default_rng(seed)
    unsafe = np.arange(NUM_PROMPTS) % 2 == 1
    states = draw.standard_normal((2, NUM_PROMPTS, 2, D_MODEL)) + unsafe[:, None, None]
    last, mean = states.astype(np.float32)
    values: dict[Read, Values] = {LAST: last, MEAN: mean}
    names = np.arange(NUM_PROMPTS).astype(str)
    return Readings(values), Targets(unsafe, names, np.array(["a", "b"] * (NUM_PROMPTS // 2)))


def of_last_layer(readings: Readings) -> Readings:
    return Readings({CaptureSpec((3,)): readings.captured(LAST)[:, 1:]})


def correlation(first: Array, second: Array) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def test_a_whole_share_is_the_logistic_regression_in_other_units() -> None:
    readings, targets = made_up()
    ensemble = LinearEnsemble((LAST, MEAN), logistic_share=1.0).fit(readings, targets, seed=0)
    linear = Linear((LAST, MEAN)).fit(readings, targets, seed=0)
    ours, theirs = (d.decision_function(readings) for d in (ensemble, linear))
    assert correlation(ours, theirs) == pytest.approx(1, abs=1e-9)
    assert ours.std() == pytest.approx(1, abs=1e-6)


def test_no_share_is_the_prototypes_of_the_last_layer_in_other_units() -> None:
    readings, targets = made_up()
    ensemble = LinearEnsemble((LAST, MEAN), logistic_share=0.0, balance="none").fit(
        readings, targets, seed=0
    )
    prototypes = Prototypes((CaptureSpec((3,)),)).fit(of_last_layer(readings), targets, seed=0)
    ours = ensemble.decision_function(readings)
    theirs = prototypes.decision_function(of_last_layer(readings))
    assert correlation(ours, theirs) == pytest.approx(1, abs=1e-9)
    assert ours.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("share", [0.25, 2 / 3])
def test_the_score_is_the_weighted_mean_of_the_members_scores(share: float) -> None:
    readings, targets = made_up()
    fresh, _ = made_up(seed=1)
    whole, none, mixed = (
        LinearEnsemble((LAST, MEAN), logistic_share=of)
        .fit(readings, targets, seed=0)
        .decision_function(fresh)
        for of in (1.0, 0.0, share)
    )
    np.testing.assert_allclose(mixed, share * whole + (1 - share) * none, atol=1e-5)


def test_a_prompt_that_counts_twice_is_like_two_of_them() -> None:
    readings, targets = made_up()
    rows = np.r_[np.arange(NUM_PROMPTS), np.arange(NUM_PROMPTS - 20, NUM_PROMPTS)]
    doubled = Targets(targets.unsafe[rows], targets.group[rows], targets.source[rows])
    sources = np.where(np.arange(NUM_PROMPTS) < NUM_PROMPTS - 20, "a", "b")
    by_source = replace(targets, source=sources)
    plain = LinearEnsemble((LAST, MEAN), logistic_share=0.0, balance="none")
    twice = plain.fit(readings.take(rows), doubled, seed=0).decision_function(readings)
    other = LinearEnsemble((LAST, MEAN), logistic_share=0.0)
    balanced = other.fit(readings, by_source, seed=0).decision_function(readings)
    once = plain.fit(readings, targets, seed=0).decision_function(readings)
    assert correlation(twice, once) < 1 - 1e-6  # prompts that count more move the fit
    # Source b has a quarter of the prompts and half of the weight: each counts three times.
    thrice = np.r_[np.arange(NUM_PROMPTS), *[np.arange(NUM_PROMPTS - 20, NUM_PROMPTS)] * 2]
    tripled = Targets(targets.unsafe[thrice], targets.group[thrice], targets.source[thrice])
    expected = plain.fit(readings.take(thrice), tripled, seed=0).decision_function(readings)
    # The ridge of prototypes depends on the number of prompts, which weights leave as it is.
    assert correlation(balanced, expected) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="logistic_share"):
        LinearEnsemble((LAST,), logistic_share=share)
