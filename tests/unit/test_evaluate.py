"""What an evaluation makes of scores: sets as sets, pairs as pairs, and nothing is left out."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from demur.core.errors import DataError
from demur.workflows.evaluate import as_json, evaluate, write
from demur.workflows.evaluate_results import Average, Evaluation, ScorerResult
from demur.workflows.evaluate_scores import Contender, FrozenThreshold
from demur.workflows.layer_values import Level
from demur.workflows.suites import EvaluationSet, Suite
from tests.evaluations import MODEL, SECRET, SUITE, THRESHOLD, contender, evaluation_set, scores_of

NUM_DRAWS = 30


def evaluated(
    contenders: Sequence[Contender], suite: Suite = SUITE
) -> tuple[Evaluation, list[dict[str, object]]]:
    return evaluate(suite, [MODEL], contenders, num_draws=NUM_DRAWS)


def mean_of(scorer: ScorerResult, measure: str, *, fpr: float | None = None) -> Average:
    (found,) = (
        of for of in scorer.averages if of.measure == measure and (fpr is None or of.fpr == fpr)
    )
    return found


def test_a_set_with_both_labels_is_measured_by_itself() -> None:
    scores = scores_of(SUITE)
    result, _ = evaluated([contender(scores)])
    mixed = result.detectors[0].sets[0]
    unsafe = np.arange(100) < 40
    assert mixed.auroc is not None
    assert mixed.auroc.value == pytest.approx(roc_auc_score(unsafe, scores["mixed"]))
    at = mixed.at_thresholds[0]
    assert at.recall is not None
    assert at.flagged_safe is not None
    assert at.recall.value == (scores["mixed"][unsafe] >= THRESHOLD).mean()
    assert at.flagged_safe.value == (scores["mixed"][~unsafe] >= THRESHOLD).mean()


def test_unsafe_prompts_alone_are_compared_with_the_safe_ones_of_their_pool() -> None:
    scores = scores_of(SUITE)
    result, _ = evaluated([contender(scores)])
    harm = result.detectors[0].sets[1]
    together = np.concatenate([scores["harm"], scores["mixed"][40:], scores["plain"]])
    assert (harm.num_unsafe, harm.num_safe, harm.num_pool) == (30, 0, 110)
    assert harm.auroc is not None
    assert harm.auroc.value == pytest.approx(roc_auc_score(np.arange(140) < 30, together))
    assert harm.f1 is None
    assert harm.at_thresholds[0].flagged_safe is None


def test_safe_prompts_alone_have_a_false_positive_rate_only() -> None:
    result, _ = evaluated([contender(scores_of(SUITE))])
    plain = result.detectors[0].sets[2]
    assert (plain.auroc, plain.f1, plain.calibration_error) == (None, None, None)
    assert plain.at_thresholds[0].recall is None
    assert plain.at_thresholds[0].flagged_safe is not None


def test_every_frozen_threshold_is_applied() -> None:
    result, _ = evaluated([contender(scores_of(SUITE))])
    assert [of.threshold for of in result.detectors[0].sets[0].at_thresholds] == [THRESHOLD, 2.0]


def test_sets_count_the_same_whatever_their_size() -> None:
    result, _ = evaluated([contender(scores_of(SUITE))])
    (scorer,) = result.detectors
    of_sets = [of.at_thresholds[0].recall for of in scorer.sets if of.num_unsafe]
    recall = mean_of(scorer, "recall")
    assert recall.num_sets == 2
    assert recall.mean.value == pytest.approx(np.mean([of.value for of in of_sets if of]))
    assert recall.mean.interval is not None
    assert recall.mean.interval[0] < recall.mean.value < recall.mean.interval[1]


def test_sets_of_one_cluster_count_as_one() -> None:
    suite = Suite(
        "mine",
        (
            evaluation_set("one", 10, 0, cluster="goals"),
            evaluation_set("two", 10, 0, cluster="goals"),
            evaluation_set("other", 10, 0),
        ),
    )
    scores = {"one": np.full(10, 2.0), "two": np.full(10, 2.0), "other": np.zeros(10)}
    result, _ = evaluated([contender(scores)], suite)
    recall = mean_of(result.detectors[0], "recall")
    assert recall.mean.value == pytest.approx(0.5)
    assert recall.num_sets == 2
    assert result.clusters == (("one", "two"),)


def test_english_and_other_sets_are_averaged_apart() -> None:
    english, other = SUITE.sets[0], evaluation_set("foreign", 20, 20)
    foreign = EvaluationSet("foreign", "test", other.examples, is_english=False)
    suite = Suite("mine", (english, foreign))
    result, _ = evaluated([contender(scores_of(suite))], suite)
    found = [of for of in result.detectors[0].averages if of.measure == "auroc"]
    assert [(of.languages, of.num_sets) for of in found] == [("english", 1), ("other", 1)]


def test_differences_are_paired() -> None:
    scores = scores_of(SUITE)
    noisy = scores_of(SUITE, seed=1)
    higher = {name: of + 1e-9 for name, of in scores.items()}
    result, _ = evaluated(
        [contender(scores), contender(higher, name="same"), contender(noisy, name="other")]
    )
    assert mean_of(result.scorers[0], "auroc").difference is None
    same = mean_of(result.scorers[1], "auroc").difference
    assert same is not None
    assert same.value == pytest.approx(0, abs=1e-12)
    assert same.interval == pytest.approx((0, 0), abs=1e-12)
    other = mean_of(result.scorers[2], "auroc").difference
    assert other is not None
    assert other.interval is not None
    assert other.interval[1] > other.interval[0]


def test_recall_at_a_rate_that_the_prompts_do_not_support_has_no_number() -> None:
    result, _ = evaluated([contender(scores_of(SUITE))])
    mixed, harm, _ = result.detectors[0].sets
    assert list(mixed.recall_at_fpr) == ["0.001", "0.01", "0.05"]
    assert mixed.recall_at_fpr["0.01"] is None
    assert harm.recall_at_fpr["0.001"] is None
    assert harm.recall_at_fpr["0.01"] is not None


def test_controls_stand_beside_the_detectors() -> None:
    result, _ = evaluated([contender(scores_of(SUITE, gain=6))])
    controls = {of.name: of for of in result.scorers if of.model is None}
    assert set(controls) == {"length", "always_flag", "shuffled_labels"}
    assert mean_of(controls["always_flag"], "recall").mean.value == 1
    assert mean_of(controls["always_flag"], "auroc").mean.value == 0.5
    shuffled = mean_of(controls["shuffled_labels"], "auroc").mean.value
    assert shuffled == pytest.approx(0.5, abs=0.12)
    assert mean_of(result.detectors[0], "auroc").mean.value > 0.99


def test_prompts_that_one_scorer_cannot_take_are_left_out_for_all() -> None:
    first, second = scores_of(SUITE), scores_of(SUITE, seed=1)
    second["mixed"][[0, 99]] = np.nan
    result, records = evaluated([contender(first), contender(second, name="second")])
    assert (result.num_prompts, result.num_left_out) == (178, 2)
    assert {(of.sets[0].num_unsafe, of.sets[0].num_safe) for of in result.scorers} == {(39, 59)}
    assert len(records) == 2 * 178


def test_a_suite_that_no_model_can_take_is_refused() -> None:
    nothing = {of.name: np.full(len(of.examples), np.nan) for of in SUITE.sets}
    with pytest.raises(DataError, match="no prompt of mine is left"):
        evaluated([contender(nothing)])


def test_there_is_a_record_a_prompt_and_detector() -> None:
    scores = scores_of(SUITE)
    _, records = evaluated([contender(scores), contender(scores, name="second")])
    assert [of["detector"] for of in records] == ["linear"] * 180 + ["second"] * 180
    assert records[0] == {
        "id": "mixed-0",
        "set": "mixed",
        "split": "test",
        "label": "unsafe",
        "group": "mixed:mixed-0",
        "language": None,
        "model": "tiny",
        "detector": "linear",
        "score": scores["mixed"][0],
        "probability": pytest.approx(1 / (1 + np.exp(2 - 2 * scores["mixed"][0]))),
        "flagged": bool(scores["mixed"][0] >= THRESHOLD),
    }


def test_one_label_is_evaluated_without_what_needs_two() -> None:
    suite = Suite("benign", (evaluation_set("plain", 0, 50),))
    result, _ = evaluated([contender(scores_of(suite))], suite)
    (scorer,) = result.detectors
    assert scorer.splits == ()
    assert [of.measure for of in scorer.averages] == ["flagged_safe"]


def test_the_roc_curve_never_overstates_and_meets_the_truth() -> None:
    scores = scores_of(SUITE)
    result, _ = evaluated([contender(scores)])
    (curve,) = result.detectors[0].curves.roc
    everything = np.concatenate(list(scores.values()))
    unsafe = np.concatenate(
        [[example.label == "unsafe" for example in of.examples] for of in SUITE.sets]
    )
    for fpr, recall in zip(curve.fpr[::16], curve.tpr[::16], strict=True):
        allowed = np.floor(fpr * (~unsafe).sum() + 1e-6)
        over = [
            (everything[unsafe] >= at).mean()
            for at in everything
            if (everything[~unsafe] >= at).sum() <= allowed
        ]
        assert recall == pytest.approx(max(over), abs=1e-5)


def test_histograms_count_every_prompt() -> None:
    result, _ = evaluated([contender(scores_of(SUITE))])
    (histogram,) = result.detectors[0].curves.histograms
    assert sum(histogram.safe) == pytest.approx(1, abs=1e-4)
    assert sum(histogram.unsafe) == pytest.approx(1, abs=1e-4)
    assert len(histogram.edges) == len(histogram.safe) + 1


def test_each_layer_has_an_auroc_of_its_own() -> None:
    scores = scores_of(SUITE)
    layers = {name: np.stack([np.zeros(len(of)), of], axis=1) for name, of in scores.items()}
    levels = (Level(0, "last block_out"), Level(3, "last block_out"))
    of_layers = Contender(
        "linear", "tiny", scores, (FrozenThreshold(1.0, 0.1),), levels=levels, layers=layers
    )
    result, _ = evaluated([of_layers])
    (whole,) = result.detectors[0].splits
    first, second = result.detectors[0].curves.layers
    assert (first.layer, first.auroc) == (0, 0.5)
    assert whole.auroc is not None
    assert second.layer == 3
    assert second.auroc == pytest.approx(whole.auroc.value)


def test_files_are_written_whole_and_hold_no_text(tmp_path: Path) -> None:
    result, records = evaluated([contender(scores_of(SUITE))])
    write(result, records, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json",
        "records.jsonl",
    }
    for path in (tmp_path / "out").iterdir():
        assert SECRET not in path.read_text()
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["suite"] == "mine"
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == len(records)


def test_the_same_scores_give_the_same_results() -> None:
    first, again = (evaluated([contender(scores_of(SUITE))])[0] for _ in range(2))
    assert as_json(first) == as_json(again)
