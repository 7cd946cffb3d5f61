"""The drift alarm on planted scores: false alarms are rare, changes are found, ties are fair."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from demur.core import artifacts
from demur.core.artifacts import Calibration
from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.guard.calibration import recalibrate
from demur.guard.drift import MAX_REFERENCE, Bettors, DriftAlarm, kept_ranks
from tests.guards import UNSAFE, linear_artifact, marker_guard

PAGE = Path(__file__).parents[2] / "docs" / "promise.md"
EMPTY = Calibration((), 1.0, 0.0, "nothing")
ALPHA = 0.1


def normal(seed: int, number: int) -> Array:
    scores: Array = np.random.default_rng(seed).standard_normal(number)
    return scores


def calibrated(scores: Array) -> Calibration:
    return recalibrate(
        EMPTY,
        scores,
        np.arange(len(scores)),
        rates=(0.05,),
        calibrated_on="planted scores",
        default_fpr=0.05,
    )


def raised_at(alarm: DriftAlarm, scores: Array) -> float:
    """Return the number of scores after which an alarm is raised; infinite if it is not."""
    return next((n for n, score in enumerate(scores, 1) if alarm.update(score)), math.inf)


def share_raised(number: int, *, shift: float = 0.0, unsafe_share: float = 0.0) -> float:
    """Return in which share of 100 streams, each with its own calibration, it is raised."""
    raised = 0
    for seed in range(100):
        scores = normal(seed, 200 + number)
        alarm = DriftAlarm(
            calibrated(scores[:200]), alpha=ALPHA, unsafe_share=unsafe_share, seed=seed
        )
        raised += raised_at(alarm, scores[200:] + shift) < math.inf
    return raised / 100


def test_false_alarms_are_no_more_frequent_than_alpha() -> None:
    assert share_raised(250) <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 100)


def test_scores_that_rose_by_their_spread_are_found() -> None:
    assert share_raised(100, shift=1.0) > 0.9


def test_scores_that_fell_are_found_though_nothing_is_flagged() -> None:
    alarm = DriftAlarm(calibrated(normal(0, 1000)))
    assert raised_at(alarm, normal(1, 200) - 1.5) < 100
    assert alarm.flag_evidence < 0 < (alarm.score_evidence or 0)


def test_with_unsafe_prompts_expected_only_flags_count() -> None:
    fallen = DriftAlarm(calibrated(normal(0, 1000)), unsafe_share=0.1)
    assert raised_at(fallen, normal(1, 500) - 3) == math.inf
    assert fallen.score_evidence is None
    assert fallen.evidence == fallen.flag_evidence
    risen = DriftAlarm(calibrated(normal(0, 1000)), unsafe_share=0.1)
    assert raised_at(risen, normal(1, 500) + 3) < 50


def test_as_many_flags_as_unsafe_prompts_are_expected_raise_no_alarm() -> None:
    alarm = DriftAlarm(calibrated(normal(0, 1000)), unsafe_share=0.2)
    scores = normal(1, 1000)
    scores[::5] = 100.0  # a fifth is unsafe and caught
    assert raised_at(alarm, scores) == math.inf


def test_equal_scores_as_in_calibration_are_no_drift() -> None:
    levels = np.repeat(np.arange(4.0), 100)
    alarm = DriftAlarm(calibrated(levels))
    assert raised_at(alarm, np.random.default_rng(0).integers(0, 4, 1000)) == math.inf


def test_p_values_of_like_scores_are_uniform_though_the_set_is_thinned() -> None:
    scores = normal(3, 5000)
    alarm = DriftAlarm(calibrated(scores[:3000]))
    assert alarm._scores is not None
    values = [alarm._scores._p_value(score) for score in scores[3000:]]
    assert kstest(values, "uniform").pvalue > 0.01


def test_an_alarm_stays_raised() -> None:
    alarm = DriftAlarm(calibrated(normal(0, 1000)))
    assert raised_at(alarm, normal(1, 200) + 3) < 100
    for score in normal(2, 2000):
        assert alarm.update(score)
    assert alarm.is_raised


def test_evidence_is_the_mean_of_both_sorts() -> None:
    alarm = DriftAlarm(calibrated(normal(0, 500)))
    for score in normal(1, 50) + 0.5:
        alarm.update(score)
    sorts = [alarm.flag_evidence, alarm.score_evidence or 0.0]
    assert math.exp(alarm.evidence) == pytest.approx(np.exp(sorts).mean())
    assert alarm.num_prompts == 50


def test_the_same_seed_gives_the_same_evidence() -> None:
    first, second = (DriftAlarm(calibrated(normal(0, 500)), seed=7) for _ in range(2))
    for score in normal(1, 100):
        first.update(score)
        second.update(score)
    assert first.evidence == second.evidence


@pytest.mark.parametrize("number", [1, 2, 511, 512, 513, 5000])
def test_kept_ranks_hold_both_ends_and_are_no_more_than_the_limit(number: int) -> None:
    ranks = kept_ranks(number)
    assert (ranks[0], ranks[-1]) == (0, number - 1)
    assert len(ranks) == min(number, MAX_REFERENCE)


def test_a_fair_bet_keeps_its_money_on_average() -> None:
    wins = np.random.default_rng(0).random((4000, 5)) < 0.5
    money = []
    for stream in wins:
        bettors = Bettors(1)
        for win in stream:
            bettors.bet(np.array([1.5 if win else 0.5]))
        money.append(math.exp(bettors.log_evidence))
    assert np.mean(money) == pytest.approx(
        1.0, abs=float(4 * np.std(money)) / math.sqrt(len(money))
    )


def test_without_calibration_scores_only_flags_are_watched() -> None:
    thresholds = calibrated(normal(0, 500)).thresholds
    alarm = DriftAlarm(Calibration(thresholds, 1.0, 0.0, "an older artifact", default_fpr=0.05))
    assert alarm.score_evidence is None
    assert raised_at(alarm, np.full(100, 9.0)) < 20


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(DataError, match="expected a finite number"):
        DriftAlarm(calibrated(normal(0, 500))).update(score)


@pytest.mark.parametrize(
    ("alpha", "unsafe_share", "words"),
    [(0.0, 0.0, "alpha is 0"), (1.0, 0.0, "alpha is 1"), (0.01, 1.0, "unsafe_share is 1")],
)
def test_numbers_out_of_range_are_refused(alpha: float, unsafe_share: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DriftAlarm(calibrated(normal(0, 500)), alpha=alpha, unsafe_share=unsafe_share)


def test_a_calibration_with_scores_missing_is_refused() -> None:
    whole = calibrated(normal(0, 500))
    damaged = Calibration(
        whole.thresholds,
        1.0,
        0.0,
        "planted scores",
        default_fpr=0.05,
        reference=whole.reference[1:],
        num_reference=500,
    )
    with pytest.raises(DataError, match="keeps 499 of 500 scores, expected 500"):
        DriftAlarm(damaged)


def test_the_example_of_the_promise_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts.save(linear_artifact(), Path("my-detector"))
    example = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    exec(example, {"guard": marker_guard(), "traffic": [UNSAFE] * 20})
    assert "prompts: no longer like numbers" in capsys.readouterr().out
