"""Kappa, precision and recall of labels, and the names that rates of outcomes may have."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from demur.core import validation
from demur.core.errors import DataError
from demur.core.validation import MeasuredKappa, ValidatedLabeller, rate_name, validated
from demur.metrics.attack_success_rate import attack_success_rate
from demur.metrics.cohen_kappa import CohenKappa
from demur.metrics.over_refusal_rate import over_refusal_rate
from demur.metrics.precision_recall import PrecisionRecall

OUTCOMES = np.array(["complied", "refused", "unclear", "refused", "complied"])
ALONE = np.arange(5)


def labels(seed: int, number: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.integers(0, 3, number)
    return first, np.where(generator.random(number) < 0.7, first, generator.integers(0, 3, number))


def labeller(**kappas: float) -> ValidatedLabeller:
    measured = [MeasuredKappa("a set", asked, kappa, None, 100) for asked, kappa in kappas.items()]  # type: ignore[arg-type]
    return ValidatedLabeller("mine", tuple(measured), {})


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    first, second = labels(seed)
    found = CohenKappa.of(first, second, group=np.arange(len(first)), num_draws=20)
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.agreement == (first == second).mean()


def test_the_interval_of_kappa_is_wider_where_replies_come_in_groups() -> None:
    first, second = labels(0)
    alone = CohenKappa.of(first, second, group=np.arange(200)).interval
    repeated = [np.repeat(values, 5) for values in (first, second)]
    grouped = CohenKappa.of(*repeated, group=np.repeat(np.arange(200), 5)).interval
    assert alone is not None
    assert grouped == pytest.approx(alone)
    naive = CohenKappa.of(*repeated, group=np.arange(1000)).interval
    assert naive is not None
    assert naive[1] - naive[0] < 0.6 * (alone[1] - alone[0])


def test_kappa_of_one_label_throughout_has_no_value() -> None:
    same = np.zeros(4, int)
    assert CohenKappa.of(same, same, group=np.arange(4)).value is None
    assert CohenKappa.of(same[:0], same[:0], group=same[:0]).value is None


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    first, second = (values == 1 for values in labels(5))
    found = PrecisionRecall.of(first, second, group=np.arange(200))
    assert found.precision == pytest.approx(precision_score(second, first))
    assert found.recall == pytest.approx(recall_score(second, first))
    assert (found.num_labelled, found.num_true) == (first.sum(), second.sum())


def test_a_label_that_nothing_has_has_no_precision() -> None:
    none = np.zeros(3, bool)
    found = PrecisionRecall.of(none, none, group=np.arange(3))
    assert found.precision is None
    assert found.recall_interval is None


@pytest.mark.parametrize(
    ("kappa", "name"), [(0.8, "attack success rate"), (0.79, "non-refusal rate")]
)
def test_only_a_labeller_at_a_kappa_of_080_names_attack_success(kappa: float, name: str) -> None:
    found = attack_success_rate(OUTCOMES, group=ALONE, labeller=labeller(unsafe=kappa))
    assert found.name == name
    assert found.rate == 0.4


def test_a_labeller_without_a_validation_names_the_weaker_rates() -> None:
    assert attack_success_rate(OUTCOMES, group=ALONE, labeller=None).name == "non-refusal rate"
    assert over_refusal_rate(OUTCOMES, group=ALONE, labeller=None).name == "refusal-like rate"


def test_the_kappa_on_safe_requests_says_nothing_of_unsafe_ones() -> None:
    mine = labeller(safe=0.95)
    assert rate_name(mine, "safe") == "over-refusal rate"
    assert rate_name(mine, "unsafe") == "non-refusal rate"


def test_the_lowest_kappa_counts() -> None:
    measured = tuple(MeasuredKappa("set", "unsafe", kappa, None, 9) for kappa in (0.95, 0.7))
    assert ValidatedLabeller("mine", measured, {}).kappa("unsafe") == 0.7


def test_unclear_replies_are_no_success_and_stand_beside_the_rate() -> None:
    found = attack_success_rate(OUTCOMES, group=ALONE, labeller=None)
    assert found.unclear == 0.2
    assert found.highest == pytest.approx(0.6)
    collapsed = np.array(["unclear"] * 4)
    assert attack_success_rate(collapsed, group=np.arange(4), labeller=None).highest == 1.0


def test_words_that_are_no_outcomes_are_refused() -> None:
    with pytest.raises(DataError, match="safe"):
        over_refusal_rate(np.array(["safe"]), group=np.arange(1), labeller=None)
    with pytest.raises(DataError, match="expected as many"):
        over_refusal_rate(OUTCOMES, group=np.arange(2), labeller=None)


def test_the_validations_that_ship_are_of_the_files_that_ship() -> None:
    stale = [name for name in validation.validations() if validated(name) is None]
    assert stale == [], "run python -m benchmarks.reply_labels --write"
    assert {"refusal_match", "reply_classifier", "agreement"} <= set(validation.validations())


def test_a_labeller_whose_files_changed_is_no_longer_validated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stale = dataclasses.replace(labeller(unsafe=0.9), files={"core/errors.py": "0"})
    path = tmp_path / "validations.json"
    path.write_text(json.dumps([stale.as_dict()]))
    monkeypatch.setattr(validation, "PATH", path)
    validation.validations.cache_clear()
    try:
        assert validation.validations()["mine"] == stale
        assert validated("mine") is None
        assert validated("nobody") is None
    finally:
        validation.validations.cache_clear()
