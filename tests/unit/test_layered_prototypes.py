"""The multi-layer prototype methods equal an independent float64 computation, and never judge a
prompt by what was fitted on its own group."""

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Stream, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors._layers import folds_of
from demur.detectors.layer_vote import LayerVote
from demur.detectors.layered_prototypes import LayeredPrototypes
from demur.detectors.nearest_mean import NearestMean
from demur.detectors.prototypes import Prototypes

LAYERS = CaptureSpec((0, 1, 2))
NUM_PROMPTS, D_MODEL = 240, 6


def planted(seed: int = 0) -> tuple[Array, Targets]:
    """Return states [prompt, layer, d_model] that tell the label better with each layer."""
    generator = np.random.default_rng(seed)
    unsafe = generator.random(NUM_PROMPTS) < 0.45
    states = generator.standard_normal((NUM_PROMPTS, 3, D_MODEL))
    states @= generator.standard_normal((D_MODEL, D_MODEL))
    for layer in range(3):
        states[unsafe, layer] += 2.0 * layer * generator.standard_normal(D_MODEL)
    group = generator.integers(80, size=NUM_PROMPTS)
    return states.astype(np.float32), Targets(unsafe, group, np.zeros(NUM_PROMPTS))


def readings_of(states: Array) -> Readings:
    return Readings({LAYERS: states})


def in_parts(states: Array, *, size: int) -> Stream:
    """Return a stream of parts in a scrambled order of rows."""
    order = np.random.default_rng(1).permutation(len(states))
    rows = [order[start : start + size] for start in range(0, len(states), size)]
    return [(part, readings_of(states[part])) for part in rows]


def gaussian(states: Array, unsafe: Array) -> tuple[Array, float]:
    """Return weights and bias of the prototypes' formula, by inversion, in float64."""
    num_prompts, d = states.shape
    means = [states[unsafe == label].mean(0) for label in (False, True)]
    centred = states - np.where(unsafe[:, None], means[1], means[0])
    within = centred.T @ centred
    ridge = np.trace(within) / (num_prompts - 1) * np.eye(d)
    weights = d * np.linalg.inv(within + ridge) @ (means[1] - means[0])
    return weights, float(-0.5 * (means[0] + means[1]) @ weights)


def by_layer(states: Array, unsafe: Array) -> list[tuple[Array, float]]:
    return [gaussian(states[:, layer], unsafe) for layer in range(states.shape[1])]


def violation(
    features: Array, unsafe: Array, penalty: float, coefficients: Array, intercept: float
) -> float:
    """Return by how much a solution misses the conditions of the optimum.

    The problem (mean loss + penalty |w|_1) is convex, and has its optimum exactly where the slope
    of the loss is -penalty sign(w) for a weight that is not 0, at most the penalty for one that is,
    and 0 for the intercept.
    """
    signs = np.where(unsafe, 1.0, -1.0)
    margins = signs * (features @ coefficients + intercept)
    slope = -signs / (1 + np.exp(margins)) / len(signs)
    of_weights = features.T @ slope
    missed = np.where(
        coefficients != 0,
        np.abs(of_weights + penalty * np.sign(coefficients)),
        np.maximum(np.abs(of_weights) - penalty, 0),
    )
    return float(max(missed.max(), abs(slope.sum())))


def test_mlpm_equals_an_independent_computation() -> None:
    states, known = planted()
    penalty, exact = 0.001, states.astype(np.float64)
    detector = LayeredPrototypes((LAYERS,), penalty=penalty).fit(readings_of(states), known, seed=5)
    fold = folds_of(known.group, num_folds=5, seed=5)
    features = np.zeros((NUM_PROMPTS, 3))
    for held in range(5):
        inside = fold != held
        sharpness = (inside.sum() - 1) / (NUM_PROMPTS - 1)
        for layer in range(3):
            weights, bias = gaussian(exact[inside, layer], known.unsafe[inside])
            log_odds = sharpness * (exact[~inside, layer] @ weights + bias)
            features[~inside, layer] = 1 / (1 + np.exp(-log_odds))
    coefficients, intercept = detector.coefficients_, detector.intercept_
    assert violation(features, known.unsafe, penalty, coefficients, intercept) < 1e-8
    posteriors = np.stack(
        [
            1 / (1 + np.exp(-(exact[:, n] @ w + b)))
            for n, (w, b) in enumerate(by_layer(exact, known.unsafe))
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        detector.decision_function(readings_of(states)),
        posteriors @ coefficients + intercept,
        atol=1e-6,
    )


def test_lpm_equals_an_independent_computation() -> None:
    states, known = planted()
    one = CaptureSpec((2,))
    readings = Readings({one: states[:, 2:]})
    detector = Prototypes((one,)).fit(readings, known, seed=0)
    exact = states[:, 2].astype(np.float64)
    weights, bias = gaussian(exact, known.unsafe)
    np.testing.assert_allclose(
        detector.decision_function(readings), exact @ weights + bias, rtol=1e-6, atol=1e-6
    )


def test_a_vote_is_the_mean_of_the_layers_posteriors() -> None:
    states, known = planted()
    exact = states.astype(np.float64)
    votes = np.stack(
        [exact[:, n] @ w + b for n, (w, b) in enumerate(by_layer(exact, known.unsafe))], axis=1
    )
    soft = LayerVote((LAYERS,)).fit(readings_of(states), known, seed=0)
    hard = LayerVote((LAYERS,), vote="hard").fit(readings_of(states), known, seed=0)
    np.testing.assert_allclose(
        soft.decision_function(readings_of(states)), (1 / (1 + np.exp(-votes))).mean(1), atol=1e-9
    )
    np.testing.assert_array_equal(hard.decision_function(readings_of(states)), (votes > 0).mean(1))


def test_the_nearest_mean_is_the_difference_of_squared_distances() -> None:
    states, known = planted()
    exact = states.reshape(NUM_PROMPTS, -1).astype(np.float64)
    to_safe, to_unsafe = (
        ((exact - exact[known.unsafe == label].mean(0)) ** 2).sum(1) for label in (False, True)
    )
    detector = NearestMean((LAYERS,)).fit(readings_of(states), known, seed=0)
    np.testing.assert_allclose(
        detector.decision_function(readings_of(states)), to_safe - to_unsafe, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("method", [LayeredPrototypes, LayerVote, NearestMean, Prototypes])
def test_readings_in_parts_give_the_fit_of_the_whole(
    method: type[LayeredPrototypes | LayerVote | NearestMean | Prototypes],
) -> None:
    states, known = planted()
    once = method((LAYERS,)).fit(readings_of(states), known, seed=0)
    streamed = method((LAYERS,)).fit_stream(in_parts(states, size=37), known, seed=0)
    np.testing.assert_allclose(
        streamed.decision_function(readings_of(states)),
        once.decision_function(readings_of(states)),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", [LayeredPrototypes, LayerVote, NearestMean, Prototypes])
def test_a_stream_that_lacks_a_prompt_is_refused(
    method: type[LayeredPrototypes | LayerVote | NearestMean | Prototypes],
) -> None:
    states, known = planted()
    parts = list(in_parts(states, size=37))[1:]
    with pytest.raises(DataError, match="240"):
        method((LAYERS,)).fit_stream(parts, known, seed=0)


def test_prompts_of_a_group_share_a_fold() -> None:
    group = np.array(["a", "b", "a", "c", "b", "d"])
    fold = folds_of(group, num_folds=3, seed=0)
    assert all(len(set(fold[group == name].tolist())) == 1 for name in "abcd")
    assert set(fold.tolist()) == {0, 1, 2}


def test_a_label_with_one_group_cannot_be_parted() -> None:
    states, known = planted()
    group = np.where(known.unsafe, "one", known.group.astype(str))
    with pytest.raises(DataError, match="too few groups"):
        LayeredPrototypes((LAYERS,)).fit(
            readings_of(states), Targets(known.unsafe, group, known.source), seed=0
        )


def test_a_strong_penalty_leaves_out_layers() -> None:
    states, known = planted()
    strong = LayeredPrototypes((LAYERS,), penalty=0.005).fit(readings_of(states), known, seed=0)
    weak = LayeredPrototypes((LAYERS,), penalty=1e-5).fit(readings_of(states), known, seed=0)
    assert 0 < np.count_nonzero(strong.coefficients_) < np.count_nonzero(weak.coefficients_)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="penalty is 0"):
        LayeredPrototypes((LAYERS,), penalty=0)
    with pytest.raises(ConfigError, match="num_folds is 1"):
        LayeredPrototypes((LAYERS,), num_folds=1)
    with pytest.raises(ConfigError, match="vote is 'loud'"):
        LayerVote((LAYERS,), vote="loud")  # type: ignore[arg-type]
