"""Sets and categories are added and taken away from moments, as if all had been fitted anew."""

from pathlib import Path

import numpy as np
import pytest

from demur.core import artifacts
from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors._mergeable import MergeableDetector
from demur.detectors.category_prototypes import CategoryPrototypes
from demur.detectors.prototypes import Prototypes
from demur.engines.fake import FakeEngine
from tests.guards import artifact_of

LAST = CaptureSpec((0,))
CATEGORIES = ("fraud", "violence", "privacy")


def labelled(num_prompts: int = 300, seed: int = 0) -> tuple[Array, Targets]:
    """Return states [prompt, 1, d_model] and targets of three sources and three categories."""
    generator = np.random.default_rng(seed)
    unsafe = generator.random(num_prompts) < 0.5
    kind = generator.integers(3, size=num_prompts)
    states = generator.standard_normal((num_prompts, 1, 5))
    for number in range(3):
        states[unsafe & (kind == number), 0] += generator.standard_normal(5) * 2
    source = np.array([f"set{n}" for n in generator.integers(3, size=num_prompts)])
    category = np.where(unsafe, np.array(CATEGORIES)[kind], "")
    return states.astype(np.float32), Targets(unsafe, np.arange(num_prompts), source, category)


def taken(states: Array, known: Targets, rows: Array) -> tuple[Readings, Targets]:
    assert known.category is not None
    return Readings({LAST: states[rows]}), Targets(
        known.unsafe[rows], known.group[rows], known.source[rows], known.category[rows]
    )


def new(method: type[MergeableDetector], keep: str) -> MergeableDetector:
    if method is CategoryPrototypes:
        return CategoryPrototypes((LAST,), keep=keep, min_prompts=5)  # type: ignore[arg-type]
    return Prototypes((LAST,), keep=keep)  # type: ignore[arg-type]


METHODS = pytest.mark.parametrize("method", [Prototypes, CategoryPrototypes])


@METHODS
def test_merging_equals_a_fit_on_both(method: type[MergeableDetector]) -> None:
    states, known = labelled()
    first, rest = np.arange(120), np.arange(120, 300)
    parts = [new(method, "sources").fit(*taken(states, known, r), seed=0) for r in (first, rest)]
    whole = new(method, "sources").fit(*taken(states, known, np.arange(300)), seed=0)
    readings = Readings({LAST: states})
    np.testing.assert_allclose(
        parts[0].merged(parts[1]).decision_function(readings),
        whole.decision_function(readings),
        rtol=1e-9,
        atol=1e-9,
    )


@METHODS
@pytest.mark.parametrize(("keep", "name"), [("sources", "set1"), ("categories", "fraud")])
def test_taking_away_equals_a_fit_without(
    method: type[MergeableDetector], keep: str, name: str
) -> None:
    states, known = labelled()
    assert known.category is not None
    of = known.source if keep == "sources" else known.category
    left = new(method, keep).fit(*taken(states, known, np.flatnonzero(of != name)), seed=0)
    removed = new(method, keep).fit(*taken(states, known, np.arange(300)), seed=0).removed(name)
    readings = Readings({LAST: states})
    np.testing.assert_allclose(
        removed.decision_function(readings), left.decision_function(readings), rtol=1e-9, atol=1e-9
    )


def test_a_category_taken_away_has_no_class_any_more() -> None:
    states, known = labelled()
    whole = new(CategoryPrototypes, "categories").fit(*taken(states, known, np.arange(300)), seed=0)
    assert whole.class_names_ == ("safe", "fraud", "privacy", "violence")
    assert whole.removed("fraud").class_names_ == ("safe", "privacy", "violence")


def test_moments_lie_in_the_artifact_and_come_back(tmp_path: Path) -> None:
    states, known = labelled()
    detector = new(Prototypes, "sources").fit(*taken(states, known, np.arange(300)), seed=0)
    engine = FakeEngine(num_layers=4, d_model=5)
    artifacts.save(artifact_of("prototypes", detector, engine), tmp_path / "saved")
    restored = artifacts.restore(artifacts.read(tmp_path / "saved"))
    assert isinstance(restored, Prototypes)
    assert (tmp_path / "saved" / "moments").is_dir()
    readings = Readings({LAST: states})
    np.testing.assert_array_equal(
        restored.removed("set0").decision_function(readings),
        detector.removed("set0").decision_function(readings),
    )


def test_without_moments_nothing_can_be_merged() -> None:
    states, known = labelled()
    detector = new(Prototypes, "none").fit(*taken(states, known, np.arange(300)), seed=0)
    with pytest.raises(DataError, match="set keep"):
        detector.merged(detector)
    with pytest.raises(DataError, match="'set0'"):
        detector.removed("set0")
    assert detector.moments() == {}


def test_the_last_set_of_a_label_cannot_be_taken_away() -> None:
    states, known = labelled()
    sources = Targets(known.unsafe, known.group, np.where(known.unsafe, "bad", "good"))
    detector = Prototypes((LAST,), keep="sources").fit(Readings({LAST: states}), sources, seed=0)
    with pytest.raises(DataError, match="both labels"):
        detector.removed("bad")


def test_rare_categories_share_a_class() -> None:
    states, known = labelled()
    assert known.category is not None
    category = known.category.astype(object)
    category[np.flatnonzero(known.unsafe)[:3]] = "rare"
    detector = CategoryPrototypes((LAST,), min_prompts=5).fit(
        Readings({LAST: states}), Targets(known.unsafe, known.group, known.source, category), seed=0
    )
    assert detector.class_names_ == ("safe", "fraud", "privacy", "violence", "other")


def test_the_score_is_the_log_odds_of_the_summed_posteriors() -> None:
    states, known = labelled()
    readings = Readings({LAST: states})
    detector = CategoryPrototypes((LAST,), min_prompts=5).fit(readings, known, seed=0)
    posteriors = detector.posteriors(readings)
    np.testing.assert_allclose(posteriors.sum(1), 1)
    np.testing.assert_allclose(
        detector.decision_function(readings),
        np.log(posteriors[:, 1:].sum(1) / posteriors[:, 0]),
        rtol=1e-6,
        atol=1e-9,
    )


def test_posteriors_equal_those_of_gaussians_with_one_covariance() -> None:
    states, known = labelled()
    readings = Readings({LAST: states})
    detector = CategoryPrototypes((LAST,), min_prompts=5).fit(readings, known, seed=0)
    assert known.category is not None
    flat = states[:, 0].astype(np.float64)
    names = np.where(known.unsafe, known.category, "safe")
    means = np.stack([flat[names == name].mean(0) for name in detector.class_names_])
    centred = flat - means[[detector.class_names_.index(name) for name in names.tolist()]]
    within = centred.T @ centred
    precision = 5 * np.linalg.inv(within + np.trace(within) / 299 * np.eye(5))
    apart = flat[:, None] - means
    likelihoods = np.exp(-0.5 * np.einsum("pcf,fg,pcg->pc", apart, precision, apart))
    np.testing.assert_allclose(
        detector.posteriors(readings), likelihoods / likelihoods.sum(1, keepdims=True), atol=1e-6
    )


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep is 'all'"):
        Prototypes((LAST,), keep="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min_prompts is 0"):
        CategoryPrototypes((LAST,), min_prompts=0)
