"""`prototypes` is its paper's closed form, from moments that can be streamed and merged."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from demur.core.errors import DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors import _moments
from demur.detectors._moments import Moments, discriminant
from demur.detectors.prototypes import Prototypes

LAST = CaptureSpec((0, 1))


def correlated(
    num_prompts: int, num_features: int, *, shift: float = 0.0, distance: float = 0.6
) -> tuple[Array, Array]:
    """Return correlated states [prompt, feature] of two classes, and which are unsafe."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((num_features, num_features)) / np.sqrt(num_features)
    unsafe = generator.random(num_prompts) < 0.4
    states = generator.standard_normal((num_prompts, num_features)) @ mixing + shift
    states[unsafe] += distance * generator.standard_normal(num_features)
    return states, unsafe


def moments_of(states: Array, unsafe: Array) -> Moments:
    return Moments.zero(2, states.shape[1]).update(states, unsafe.astype(int))


def fitted(states: Array, unsafe: Array) -> tuple[Prototypes, Readings]:
    readings = Readings({LAST: states.reshape(len(states), 2, -1).astype(np.float32)})
    known = Targets(unsafe, np.arange(len(unsafe)), np.zeros(len(unsafe)))
    return Prototypes((LAST,)).fit(readings, known, seed=0), readings


def by_inversion(states: Array, unsafe: Array) -> tuple[Array, float]:
    """Return weights and bias as the docstring's formula says, term by term."""
    num_prompts, d = states.shape
    means = [states[unsafe == label].mean(0) for label in (False, True)]
    centred = states - np.where(unsafe[:, None], means[1], means[0])
    scatter = centred.T @ centred / (num_prompts - 1)
    precision = d * np.linalg.inv((num_prompts - 1) * scatter + np.trace(scatter) * np.eye(d))
    weights = precision @ (means[1] - means[0])
    return weights, float(-0.5 * (means[1] + means[0]) @ weights)


def assert_same(found: Moments, expected: Moments) -> None:
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(found.products, expected.products, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("num_prompts", "num_features"), [(200, 6), (40, 10), (12, 30)])
def test_the_discriminant_is_the_formula(num_prompts: int, num_features: int) -> None:
    states, unsafe = correlated(num_prompts, num_features)
    weights, bias = discriminant(moments_of(states, unsafe))
    expected_weights, expected_bias = by_inversion(states, unsafe)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-9, atol=1e-12)
    assert bias == pytest.approx(expected_bias, rel=1e-9)


def test_scores_of_raw_states_are_those_of_the_formula() -> None:
    states, unsafe = correlated(80, 10)
    detector, readings = fitted(states, unsafe)
    as_read = readings.pooled(LAST).reshape(80, -1).astype(np.float64)
    weights, bias = by_inversion(as_read, unsafe)
    np.testing.assert_allclose(
        detector.decision_function(readings), as_read @ weights + bias, rtol=1e-5, atol=1e-6
    )


def test_the_score_is_zero_between_the_prototypes() -> None:
    states, unsafe = correlated(80, 10)
    weights, bias = discriminant(moments_of(states, unsafe))
    middle = (states[unsafe].mean(0) + states[~unsafe].mean(0)) / 2
    assert weights @ middle + bias == pytest.approx(0, abs=1e-9)


def test_with_many_prompts_the_direction_is_that_of_linear_discriminant_analysis() -> None:
    states, unsafe = correlated(4000, 8)
    found, _ = discriminant(moments_of(states, unsafe))
    wanted = LinearDiscriminantAnalysis(solver="lsqr").fit(states, unsafe).coef_[0]
    cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine > 0.999


def test_fewer_prompts_than_features_still_have_a_solution() -> None:
    states, unsafe = correlated(10, 40, distance=3.0)
    detector, readings = fitted(states, unsafe)
    scores = detector.decision_function(readings)
    assert scores[unsafe].min() > scores[~unsafe].max()


def test_moments_streamed_in_parts_equal_those_of_one_pass() -> None:
    states, unsafe = correlated(100, 5)
    streamed = Moments.zero(2, 5)
    for start in range(0, 100, 7):
        streamed.update(states[start : start + 7], unsafe[start : start + 7].astype(int))
    assert_same(streamed, moments_of(states, unsafe))


def test_moments_do_not_depend_on_the_size_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    states, unsafe = correlated(100, 5)
    whole = moments_of(states, unsafe)
    monkeypatch.setattr(_moments, "ROWS_A_CHUNK", 9)
    assert_same(moments_of(states, unsafe), whole)


def test_merged_moments_equal_those_of_the_whole() -> None:
    states, unsafe = correlated(100, 5)
    merged = moments_of(states[:30], unsafe[:30]).merge(moments_of(states[30:], unsafe[30:]))
    assert_same(merged, moments_of(states, unsafe))


def test_a_class_may_be_missing_from_a_part() -> None:
    states, unsafe = correlated(100, 5)
    merged = moments_of(states[unsafe], unsafe[unsafe]).merge(
        moments_of(states[~unsafe], unsafe[~unsafe])
    )
    assert_same(merged, moments_of(states, unsafe))


def test_merging_leaves_the_other_part_as_it_was() -> None:
    states, unsafe = correlated(100, 5)
    other = moments_of(states, unsafe)
    moments_of(states, unsafe).merge(other).update(states, unsafe.astype(int))
    assert_same(other, moments_of(states, unsafe))


def test_the_scatter_is_around_each_class_mean() -> None:
    states, unsafe = correlated(100, 5)
    expected = sum(
        ((unsafe == label).sum() - 1) * np.cov(states[unsafe == label].T) for label in (False, True)
    )
    np.testing.assert_allclose(moments_of(states, unsafe).within, expected, rtol=1e-10, atol=1e-10)


def test_float32_states_far_from_zero_keep_their_scatter() -> None:
    near, unsafe = correlated(5000, 5)
    far = (near + 1e4).astype(np.float32)
    exact = far.astype(np.float64) - 1e4
    rounding = np.sqrt(5000) * np.finfo(np.float64).eps * 5000 * 1e4**2  # of a sum of squares
    np.testing.assert_allclose(
        moments_of(far, unsafe).within, moments_of(exact, unsafe).within, rtol=1e-6, atol=rounding
    )


def test_shifted_states_have_the_same_direction() -> None:
    near, unsafe = correlated(500, 8)
    far, _ = correlated(500, 8, shift=1e4)
    found, wanted = (discriminant(moments_of(x, unsafe))[0] for x in (far, near))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


def test_an_empty_class_is_refused() -> None:
    states, _ = correlated(20, 4)
    with pytest.raises(DataError, match=r"no prompts: the counts are \[20.0, 0.0\]"):
        discriminant(moments_of(states, np.zeros(20, bool)))


@pytest.mark.parametrize(("place", "distance"), [(0.0, 1.0), (0.1, 1.37)])
def test_states_without_spread_are_refused(place: float, distance: float) -> None:
    unsafe = np.arange(10) % 2 == 1
    states = np.full((10, 4), place, np.float32)
    states[unsafe] += np.float32(distance)
    with pytest.raises(DataError, match="no spread"):
        discriminant(moments_of(states, unsafe))
