"""Portable scores are the guard's, and need neither torch nor scikit-learn."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demur import portable
from demur.core import artifacts, registry
from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from tests.guards import LAST, Always, artifact_of, linear_artifact, marked_texts, read_texts

SCORE = """
import json, sys
for name in ("torch", "transformers", "sklearn", "scipy", "gguf", "accelerate"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
from demur import portable
folder, *states_paths = map(Path, sys.argv[1:])
detector = portable.load(folder)
scores = detector.score([np.load(path) for path in states_paths])
print(json.dumps([scores.tolist(), detector.flagged(scores).tolist()]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifacts.save(linear_artifact(), tmp_path / "guard")
    return tmp_path / "guard"


def states_of(texts: list[str], reads: tuple[CaptureSpec, ...]) -> list[Array]:
    readings = read_texts(FakeEngine(), reads, texts)
    return [readings.pooled(spec) for spec in reads]


def test_portable_scores_equal_those_of_the_guard(folder: Path) -> None:
    detector = portable.load(folder)
    guard = Guard.load(FakeEngine(), detectors=[folder])
    texts, unsafe = marked_texts(12)
    scores = detector.score(states_of(texts, detector.reads))
    verdicts = [guard.check(text)[0] for text in texts]
    assert scores.tolist() == [verdict.score for verdict in verdicts]
    np.testing.assert_allclose(
        detector.probability(scores),
        np.array([verdict.probability for verdict in verdicts]),
        rtol=1e-9,
        atol=1e-15,
    )
    assert detector.flagged(scores).tolist() == [verdict.flagged for verdict in verdicts]
    assert detector.flagged(scores).tolist() == unsafe.tolist()


def test_a_portable_detector_loads_and_scores_without_torch_and_scikit_learn(
    folder: Path, tmp_path: Path
) -> None:
    detector = portable.load(folder)
    states = states_of(marked_texts(12)[0], detector.reads)
    paths = [tmp_path / f"states-{number}.npy" for number in range(len(states))]
    for path, of_read in zip(paths, states, strict=True):
        np.save(path, of_read)
    command = [sys.executable, "-W", "error", "-c", SCORE, str(folder), *map(str, paths)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stderr == ""
    scores, flagged = json.loads(finished.stdout)
    expected = detector.score(states)
    assert scores == expected.tolist()
    assert flagged == detector.flagged(expected).tolist()


def test_a_portable_detector_says_what_it_must_be_given(folder: Path) -> None:
    detector, artifact = portable.load(folder), artifacts.read(folder)
    assert detector.reads == artifacts.restore(artifact).reads
    assert detector.model_id == artifact.model_id


def test_another_rate_has_another_threshold(folder: Path) -> None:
    detector = portable.load(folder)
    thresholds = [detector.calibration.at(fpr).threshold for fpr in (0.01, 0.1)]
    between = np.array([sum(thresholds) / 2])
    assert detector.flagged(between).tolist() == [False]
    assert detector.flagged(between, fpr=0.1).tolist() == [True]


def test_a_rate_that_was_not_calibrated_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="calibrated rates are"):
        portable.load(folder).flagged(np.zeros(1), fpr=0.02)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_neither_flagged_nor_passed(
    folder: Path, broken: float
) -> None:
    with pytest.raises(DataError, match="can neither pass nor be flagged"):
        portable.load(folder).flagged(np.array([0.0, broken]))


def test_probabilities_of_extreme_scores_do_not_overflow(folder: Path) -> None:
    probabilities = portable.load(folder).probability(np.array([-1e300, 1e300]))
    assert probabilities.tolist() == [0.0, 1.0]


def test_a_missing_array_of_states_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="got 0 arrays of states: expected 2"):
        portable.load(folder).score([])


def test_states_of_another_shape_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="shape"):
        portable.load(folder).score([np.zeros((2, 1, 16), np.float32)] * 2)


def test_states_that_are_not_finite_are_refused(folder: Path) -> None:
    detector = portable.load(folder)
    states = states_of(["Hello there."], detector.reads)
    states[1][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        detector.score(states)


def test_weights_that_are_not_finite_are_not_loaded(folder: Path) -> None:
    artifact = artifacts.read(folder)
    broken = np.full_like(artifact.state["weights.0"], np.nan)
    artifacts.save(replace(artifact, state={**artifact.state, "weights.0": broken}), folder)
    with pytest.raises(DataError, match="finite"):
        portable.load(folder)


def test_float64_states_score_as_float32_ones(folder: Path) -> None:
    detector = portable.load(folder)
    states = states_of(["Hello there."], detector.reads)
    expected = detector.score(states)
    as_float64 = [of_read.astype(np.float64) for of_read in states]
    np.testing.assert_array_equal(detector.score(as_float64), expected)


def test_a_method_that_is_not_linear_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name: Always)
    artifacts.save(artifact_of("always", Always((LAST,), 1.0), FakeEngine()), tmp_path / "guard")
    with pytest.raises(CapabilityError, match="'always' detector, which is not linear"):
        portable.load(tmp_path / "guard")


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no detector"):
        portable.load(tmp_path)
