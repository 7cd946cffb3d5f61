"""A cascade: the second detector judges the prompts in the band, and no other costs a pass."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demur.core import artifacts
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.protocols import Stream
from demur.core.readings import Array, Deferred, Readings
from demur.core.reads import OwnPass, PilotTokens, Read
from demur.core.types import Chat
from demur.detectors.cascade import Cascade, product_logit
from demur.detectors.prompted import Prompted
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.workflows.evaluate_scores import (
    Contender,
    FrozenThreshold,
    OpenModel,
    load_judges,
    score_suite,
)
from demur.workflows.suites import EvaluationSet, Suite
from tests.guards import (
    SAFE,
    UNSAFE,
    artifact_of,
    fitted_linear,
    linear_artifact,
    marked_texts,
    read_texts,
    targets_of,
)
from tests.tiny import tiny


class Lengths:
    """Runs passes whose log-odds are the lengths of the texts, and keeps the texts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def values_of(self, read: OwnPass, chats: Sequence[Chat]) -> Array:
        texts = [chat.messages[-1].content for chat in chats]
        self.asked += texts
        return np.array([[float(len(text)), 0.0] for text in texts])


def stacked(firsts: Sequence[float], **fields: Any) -> tuple[Cascade, Readings, Lengths]:
    """Return a cascade of two questions, readings in which the first one has some log-odds."""
    cascade = Cascade((), first="prompted:0", second="prompted:1", **fields).ready()
    runner = Lengths()
    first, second = cascade.reads
    assert isinstance(second, OwnPass)
    chats = tuple(Chat.from_text("x" * (row + 1)) for row in range(len(firsts)))
    odds = np.stack([np.array(firsts), np.zeros(len(firsts))], 1)
    return cascade, Readings({first: odds, second: Deferred(runner, second, chats)}), runner


FIRSTS = (-3.0, -1.0, 0.5, 2.0, 9.0)


def test_only_prompts_in_the_band_are_asked_about() -> None:
    cascade, readings, runner = stacked(FIRSTS, low=-1.0, high=2.0)
    scores = cascade.decision_function(readings)
    assert runner.asked == ["xx", "xxx"]  # the lower end belongs to the band, the upper does not
    expected = [-3.0, 0.55 * -1.0 + 0.45 * 2, 0.55 * 0.5 + 0.45 * 3, 2.0, 9.0]
    np.testing.assert_allclose(scores, expected)


def test_the_second_score_alone_can_count() -> None:
    cascade, readings, _ = stacked(FIRSTS, low=-1.0, high=2.0, combine="second")
    np.testing.assert_allclose(cascade.decision_function(readings), [-3.0, 2.0, 3.0, 2.0, 9.0])


def sigmoid(values: Array) -> Array:
    odds: Array = 1 / (1 + np.exp(-values))
    return odds


def test_the_product_is_that_of_both_probabilities() -> None:
    cascade, readings, runner = stacked(FIRSTS, low=0.0, high=None, combine="product")
    found = cascade.decision_function(readings)
    assert runner.asked == ["xxx", "xxxx", "xxxxx"]
    np.testing.assert_array_equal(found[:2], FIRSTS[:2])
    together = sigmoid(np.array(FIRSTS[2:])) * sigmoid(np.array([3.0, 4.0, 5.0]))
    np.testing.assert_allclose(sigmoid(found[2:]), together)


def test_a_product_of_certainties_neither_overflows_nor_becomes_one() -> None:
    far = np.array([900.0, 900.0, -900.0, -900.0])
    together = product_logit(far, np.array([900.0, 2.0, 900.0, -900.0]))
    np.testing.assert_allclose(together, [900 - np.log(2), 2.0, -900.0, -1800.0])


def test_both_scores_have_to_reach_their_threshold() -> None:
    cascade, readings, _ = stacked(FIRSTS, low=-1.0, high=None, combine="both", offset=2.5)
    found = cascade.decision_function(readings)
    np.testing.assert_allclose(found, [-3.0, -1.0, 0.5, 1.5, 2.5])
    for threshold in (0.0, 1.0, 2.0):
        both = (np.array(FIRSTS) >= threshold) & (np.arange(1, 6) >= threshold + 2.5)
        np.testing.assert_array_equal(found >= threshold, both)


def test_scores_become_log_odds_before_they_are_put_together() -> None:
    odds = {"first_odds": (2.0, 1.0), "second_odds": [0.5, -1.0]}
    cascade, readings, runner = stacked(FIRSTS, low=0.0, high=None, combine="both", **odds)
    found = cascade.decision_function(readings)
    assert runner.asked == ["xxx", "xxxx", "xxxxx"]  # the band is in scores
    np.testing.assert_allclose(found, [-5.0, -1.0, 0.5, 1.0, 1.5])
    restored = Cascade.from_hyper_parameters(json.loads(json.dumps(cascade.hyper_parameters())))
    assert restored.first_odds == (2.0, 1.0)
    average, readings, _ = stacked(FIRSTS, low=-1.0, high=2.0, **odds)
    np.testing.assert_allclose(average.decision_function(readings)[[0, 4]], [-3.0, 9.0])


def test_an_artifact_brings_its_own_odds(tmp_path: Path) -> None:
    artifact = linear_artifact()
    artifacts.save(artifact, tmp_path / "marker")
    cascade = Cascade((), first=str(tmp_path / "marker"), combine="product")
    assert cascade.first_odds == (artifact.calibration.slope, artifact.calibration.intercept)
    assert cascade.second_odds is None


@pytest.mark.parametrize("combine", ["product", "both"])
def test_from_the_band_on_nobody_is_flagged_otherwise_than_if_all_had_been_asked(
    combine: str,
) -> None:
    firsts = np.random.default_rng(0).normal(0, 3, 40).tolist()
    few, readings, runner = stacked(firsts, low=0.5, high=None, combine=combine)
    every, all_readings, _ = stacked(firsts, low=-1e9, high=None, combine=combine)
    found, expected = few.decision_function(readings), every.decision_function(all_readings)
    assert 0 < len(runner.asked) < 40
    for threshold in (0.5, 1.0, 3.0):
        np.testing.assert_array_equal(found >= threshold, expected >= threshold)


def two_stages(engine: FakeEngine) -> Cascade:
    """Return the two-stage rule, fitted where the model complies with every other unsafe prompt."""
    stages = Cascade(
        Cascade.default_reads(4), second="compliance", low=0.0, high=None, combine="product"
    )
    texts, marked = marked_texts(80)
    complied = (np.arange(80) % 4 == 1).astype(float)
    readings = read_texts(engine, stages.reads, texts)
    return stages.fit(readings, replace(targets_of(marked), complied=complied), seed=0)


def test_two_stages_are_an_artifact_like_any_other(tmp_path: Path) -> None:
    engine = FakeEngine()
    stages = two_stages(engine)
    assert PilotTokens(3, (-1,), "final_norm") in stages.reads
    artifacts.save(artifact_of("cascade", stages, engine), tmp_path / "saved")
    restored = artifacts.restore(artifacts.read(tmp_path / "saved"))
    readings = read_texts(engine, stages.reads, marked_texts(20, start=300)[0])
    np.testing.assert_array_equal(
        restored.decision_function(readings), stages.decision_function(readings)
    )
    assert restored.measured() == {"escalation_rate": 0.5}


def test_an_empty_band_asks_about_nothing() -> None:
    cascade, readings, runner = stacked(FIRSTS, low=0.0, high=0.0)
    np.testing.assert_array_equal(cascade.decision_function(readings), FIRSTS)
    assert runner.asked == []
    assert cascade.measured() == {"escalation_rate": 0.0}


def test_the_escalation_rate_is_that_of_all_prompts_scored() -> None:
    cascade, readings, _ = stacked(FIRSTS, low=-1.0, high=2.0)
    assert cascade.measured() == {}
    cascade.decision_function(readings)
    assert cascade.measured() == {"escalation_rate": 0.4}
    cascade.decision_function(readings.take([0, 3, 4]))
    assert cascade.measured() == {"escalation_rate": 0.25}


def fitted_on_fake(engine: FakeEngine, **fields: Any) -> Cascade:
    cascade = Cascade(Cascade.default_reads(4), **fields)
    texts, unsafe = marked_texts(40)
    return cascade.fit(read_texts(engine, cascade.reads, texts), targets_of(unsafe), seed=0)


def test_a_fit_asks_about_few_prompts_and_forgets_what_was_measured() -> None:
    engine = FakeEngine()
    cascade = Cascade(Cascade.default_reads(4), second={"method": "prompted", "num_calibrated": 8})
    texts, unsafe = marked_texts(40)
    readings = read_texts(engine, cascade.reads, texts)
    cascade.fit(readings, targets_of(unsafe), seed=0)
    assert engine.num_own_passes == 8
    cascade.decision_function(readings)
    cascade.fit(readings, targets_of(unsafe), seed=0)
    assert cascade.measured() == {}


def test_a_saved_cascade_scores_as_before(tmp_path: Path) -> None:
    engine = FakeEngine()
    cascade = fitted_on_fake(engine, low=-100.0, high=100.0)
    artifacts.save(artifact_of("cascade", cascade, engine), tmp_path / "saved")
    restored = artifacts.restore(artifacts.read(tmp_path / "saved"))
    readings = read_texts(engine, cascade.reads, marked_texts(8, start=500)[0])
    np.testing.assert_array_equal(
        restored.decision_function(readings), cascade.decision_function(readings)
    )
    assert restored.measured() == {"escalation_rate": 1.0}


def test_an_artifact_as_first_detector_stays_as_it_is_fitted(tmp_path: Path) -> None:
    artifacts.save(linear_artifact(), tmp_path / "marker")
    engine = FakeEngine()
    given = artifacts.restore(artifacts.read(tmp_path / "marker"))
    cascade = Cascade((), first=str(tmp_path / "marker"), low=1e6, high=1e6)
    texts, unsafe = marked_texts(20, start=700)
    readings = read_texts(engine, cascade.reads, texts)
    cascade.fit(readings, targets_of(~unsafe), seed=0)  # would turn a fresh fit round
    np.testing.assert_array_equal(
        cascade.decision_function(readings), given.decision_function(readings)
    )


def test_a_cascade_of_artifact_and_question_needs_no_fit(tmp_path: Path) -> None:
    artifacts.save(linear_artifact(), tmp_path / "marker")
    cascade = Cascade((), first=str(tmp_path / "marker")).ready()
    assert set(cascade.state()) >= {"second.slope", "second.bias"}
    with pytest.raises(ConfigError, match="the first detector of the cascade, 'linear', has to be"):
        Cascade(Cascade.default_reads(4)).ready()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combine": "neither"}, "combine is 'neither'"),
        ({"low": 3.0}, r"the band is 3\.0 to 2\.0"),
        ({"weight": 1.5}, r"weight is 1\.5"),
        ({"first_odds": (-1.0, 0.0)}, r"odds are \(-1\.0, 0\.0\)"),
        ({"first": "nothing"}, "no detector 'nothing': expected an artifact's folder, or one of"),
        ({"second": {"method": "nothing"}}, "no detector 'nothing'"),
        ({"second": {"method": "prompted", "wrapper": 12}}, "wrapper is 12"),
        ({"second": {"method": "prompted", "c": 1}}, "does not take these fields"),
        ({"second": "prompted:c=1"}, "prompted has no field 'c'"),
        ({"first": {"method": "linear", "watches": "reply"}}, "watches a reply"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cascade(Cascade.default_reads(4), **fields)


def test_a_state_of_something_else_is_refused() -> None:
    state = fitted_on_fake(FakeEngine()).state()
    with pytest.raises(DataError, match="expected arrays of first and second"):
        Cascade(Cascade.default_reads(4)).load_state({**state, "third.bias": np.zeros(1)})


def guard_of(engine: Any, cascade: Cascade) -> Guard:
    detector = CalibratedDetector("cascade", cascade, 0.0, 1.0, 0.0, "test")
    return Guard(
        engine,
        [detector],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )


def test_in_a_guard_a_clear_prompt_costs_no_further_pass() -> None:
    loaded = tiny("llama")
    engine = TransformersEngine(loaded)
    first = fitted_linear(engine)
    texts = [SAFE, UNSAFE]
    scores = first.decision_function(read_texts(engine, first.reads, texts))
    unclear = float(scores[1])
    cascade = Cascade(
        (),
        first={"method": "linear", **first.hyper_parameters()},
        second="prompted:9",
        low=unclear - 0.01,
        high=unclear + 0.01,
        combine="second",
    )
    linear = {f"first.{name}": array for name, array in first.state().items()}
    scaling = {f"second.{name}": array for name, array in Prompted(()).ready().state().items()}
    cascade.load_state({**linear, **scaling})
    guard = guard_of(engine, cascade)
    guard.check(UNSAFE)  # the question's own beginning is read once
    passes: list[int] = []
    embeddings = loaded.model.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        (clear,) = guard.check(SAFE)
        num_clear = len(passes)
        (asked,) = guard.check(UNSAFE)
    finally:
        hook.remove()
    assert (num_clear, len(passes)) == (1, 3)
    assert clear.score == pytest.approx(float(scores[0]), abs=1e-5)
    read = cascade.reads[-1]
    assert isinstance(read, OwnPass)
    values = read_texts(engine, (read,), [UNSAFE]).log_probabilities(read)[0]
    assert asked.score == pytest.approx(float(values[0] - values[1]), abs=1e-5)
    assert cascade.measured() == {"escalation_rate": pytest.approx(2 / 3)}


def evaluated(engine: FakeEngine, lines: Sequence[str]) -> list[Contender]:
    """Return detectors with their scores of twenty prompts."""

    def read(chats: Sequence[Chat], reads: Sequence[Read]) -> Stream:
        texts = [chat.messages[0].content for chat in chats]
        return [(np.arange(len(texts)), read_texts(engine, tuple(reads), texts))]

    texts, unsafe = marked_texts(20, start=300)
    examples = [
        Example(str(row), Chat.from_text(text), label="unsafe" if is_unsafe else "safe")
        for row, (text, is_unsafe) in enumerate(zip(texts, unsafe, strict=True))
    ]
    model = OpenModel(engine, num_blocks=4, device="cpu", read=read)
    suite = Suite("mine", (EvaluationSet("mine", "test", tuple(examples)),))
    return score_suite(model, load_judges(model, lines, {}), suite)


def test_an_evaluation_tells_how_many_prompts_were_passed_on(tmp_path: Path) -> None:
    artifacts.save(linear_artifact(), tmp_path / "marker")
    line = f"cascade:{tmp_path / 'marker'},second=prompted:1,low=0,high=1e6,combine=second"
    engine = FakeEngine()
    first, asked, both = evaluated(engine, (str(tmp_path / "marker"), "prompted:1", line))
    in_the_band = first.scores["mine"] >= 0
    assert 0 < in_the_band.sum() < 20
    assert both.measured == {"escalation_rate": in_the_band.mean()}
    expected = np.where(in_the_band, asked.scores["mine"], first.scores["mine"])
    np.testing.assert_allclose(both.scores["mine"], expected)
    assert first.measured == {}


def test_a_detector_that_was_never_calibrated_is_evaluated_at_even_odds(tmp_path: Path) -> None:
    (asked,) = evaluated(FakeEngine(), ("prompted:1",))
    assert asked.thresholds == (FrozenThreshold(0.0, None),)
    assert asked.platt == (1.0, 0.0)
