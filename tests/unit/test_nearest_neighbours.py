"""`nearest_neighbours` is a search by cosine similarity among the training prompts."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors.linear import Linear
from demur.detectors.nearest_neighbours import NearestNeighbours

LAST = CaptureSpec((0, 1))


def states_of(num_prompts: int, *, seed: int, d_model: int = 20) -> tuple[Array, Array]:
    """Return states [prompt, layer, d_model] that differ in place and scale, and who is unsafe."""
    of_model, of_prompts = np.random.default_rng(0), np.random.default_rng(seed)
    shape = (2, d_model)
    scale, place = of_model.uniform(0.1, 30, shape), of_model.uniform(-90, 90, shape)
    unsafe = of_prompts.random(num_prompts) < 0.4
    noise = of_prompts.standard_normal((num_prompts, *shape))
    noise[unsafe] += 0.5 * of_model.standard_normal(shape)
    return (noise * scale + place).astype(np.float32), unsafe


def known_of(unsafe: Array) -> Targets:
    return Targets(unsafe, np.arange(len(unsafe)), np.zeros(len(unsafe)))


def fitted(states: Array, unsafe: Array, *, k: int = 16) -> NearestNeighbours:
    return NearestNeighbours((LAST,), k).fit(Readings({LAST: states}), known_of(unsafe), seed=0)


def by_search(train: Array, unsafe: Array, test: Array, *, k: int) -> Array:
    """Return the scores as scikit-learn's brute-force search gives them, in float64."""
    flat, asked = (x.reshape(len(x), -1).astype(np.float64) for x in (train, test))
    scaler = StandardScaler().fit(flat)
    similarities = []
    for label in (True, False):
        of_label = scaler.transform(flat[unsafe == label])
        search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine")
        distances, _ = search.fit(of_label).kneighbors(scaler.transform(asked))
        similarities.append(1 - distances.mean(1))
    scores: Array = similarities[0] - similarities[1]
    return scores


@pytest.mark.parametrize("k", [1, 5, 16])
def test_scores_are_those_of_a_brute_force_search(k: int) -> None:
    train, unsafe = states_of(200, seed=1)
    test, _ = states_of(60, seed=2)
    scores = fitted(train, unsafe, k=k).decision_function(Readings({LAST: test}))
    expected = by_search(train, unsafe, test, k=k)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-4)  # float16 is what is kept
    assert np.abs(expected).max() > 0.1


def test_a_label_with_fewer_prompts_than_neighbours_uses_all() -> None:
    train, unsafe = states_of(200, seed=1)
    rows = np.concatenate([np.flatnonzero(unsafe)[:3], np.flatnonzero(~unsafe)])
    train, unsafe = train[rows], unsafe[rows]
    test = states_of(20, seed=2)[0]
    scores = fitted(train, unsafe, k=16).decision_function(Readings({LAST: test}))
    flat, asked = (x.reshape(len(x), -1).astype(np.float64) for x in (train, test))
    scaler = StandardScaler().fit(flat)
    x, queries = scaler.transform(flat), scaler.transform(asked)
    x, queries = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, queries))
    to_unsafe, to_safe = queries @ x[unsafe].T, np.sort(queries @ x[~unsafe].T, axis=1)[:, -16:]
    np.testing.assert_allclose(scores, to_unsafe.mean(1) - to_safe.mean(1), rtol=0, atol=2e-4)


def test_a_training_prompt_is_its_own_nearest_neighbour() -> None:
    train, unsafe = states_of(60, seed=1)
    scores = fitted(train, unsafe, k=1).decision_function(Readings({LAST: train}))
    assert scores[unsafe].min() > 0 > scores[~unsafe].max()


def test_unsafe_prompts_on_both_sides_of_the_safe_ones_are_found() -> None:
    generator = np.random.default_rng(0)

    def draw(num_prompts: int) -> tuple[Readings, Array]:
        kind = np.arange(num_prompts) % 4  # 0 and 2 are safe; 1 and 3 lie on either side
        states = generator.standard_normal((num_prompts, 2, 4))
        states[:, 0, 0] += np.array([0, 5, 0, -5])[kind]
        states[:, 0, 1] += np.array([5, 0, -5, 0])[kind]
        return Readings({LAST: states.astype(np.float32)}), kind % 2 == 1

    (train, unsafe), (test, is_unsafe) = draw(200), draw(100)
    detector = NearestNeighbours((LAST,)).fit(train, known_of(unsafe), seed=0)
    assert roc_auc_score(is_unsafe, detector.decision_function(test)) > 0.95
    linear = Linear((LAST,), c=1.0).fit(train, known_of(unsafe), seed=0)
    assert roc_auc_score(is_unsafe, linear.decision_function(test)) < 0.7


def test_the_order_of_the_training_prompts_changes_no_score() -> None:
    train, unsafe = states_of(100, seed=1)
    readings = Readings({LAST: states_of(20, seed=2)[0]})
    order = np.random.default_rng(3).permutation(100)
    np.testing.assert_allclose(
        fitted(train, unsafe).decision_function(readings),
        fitted(train[order], unsafe[order]).decision_function(readings),
        rtol=0,
        atol=1e-6,
    )


def test_the_size_of_a_state_alone_changes_no_score() -> None:
    train, unsafe = states_of(100, seed=1)
    detector = fitted(train, unsafe)
    test, mean = states_of(20, seed=2)[0], train.mean(0)
    nearer = (test - mean) * 0.25 + mean
    np.testing.assert_allclose(
        detector.decision_function(Readings({LAST: test})),
        detector.decision_function(Readings({LAST: nearer.astype(np.float32)})),
        rtol=0,
        atol=1e-4,
    )


def test_a_training_prompt_takes_two_bytes_a_feature() -> None:
    train, unsafe = states_of(100, seed=1)
    state = fitted(train, unsafe).state()
    assert state["unsafe"].nbytes + state["safe"].nbytes == 2 * train.size


def test_a_constant_feature_changes_no_score() -> None:
    train, unsafe = states_of(100, seed=1)
    train[:, 1, 2] = -3e4
    detector = fitted(train, unsafe)
    moved = train.copy()
    moved[:, 1, 2] += 1000
    np.testing.assert_array_equal(
        detector.decision_function(Readings({LAST: train})),
        detector.decision_function(Readings({LAST: moved})),
    )


def test_a_state_at_the_mean_is_like_no_prompt() -> None:
    train = np.array([[-1, 2], [1, -2], [-1, -2], [1, 2]], np.float32)[:, :, None]
    detector = fitted(train, np.array([True, True, False, False]))
    zero = Readings({LAST: np.zeros((1, 2, 1), np.float32)})
    np.testing.assert_array_equal(detector.decision_function(zero), [0])


def test_wide_states_of_odd_width_score_alike_in_any_batch() -> None:
    train, unsafe = states_of(77, seed=1, d_model=513)
    detector, readings = fitted(train, unsafe), Readings({LAST: train})
    alone = [detector.decision_function(readings.take([row]))[0] for row in range(77)]
    np.testing.assert_array_equal(detector.decision_function(readings), alone)


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}: expected 1 or more"):
        NearestNeighbours((LAST,), k)


@pytest.mark.parametrize("name", ["mean", "scale", "safe", "unsafe"])
def test_a_state_that_is_not_finite_is_refused(name: str) -> None:
    state = fitted(*states_of(60, seed=1)).state()
    state[name].flat[-1] = np.nan
    with pytest.raises(DataError, match=f"{name} is not finite"):
        NearestNeighbours((LAST,)).load_state(state)


@pytest.mark.parametrize(
    ("name", "array"),
    [("safe", np.ones((5, 3))), ("unsafe", np.ones((0, 40))), ("scale", np.ones(3))],
)
def test_a_state_of_another_shape_is_refused(name: str, array: Array) -> None:
    state = fitted(*states_of(60, seed=1)).state()
    with pytest.raises(DataError, match=f"{name} has shape"):
        NearestNeighbours((LAST,)).load_state({**state, name: array})


def test_changing_a_state_changes_no_detector() -> None:
    train, unsafe = states_of(60, seed=1)
    detector, readings = fitted(train, unsafe), Readings({LAST: train})
    before = detector.decision_function(readings)
    state = detector.state()
    restored = NearestNeighbours((LAST,)).load_state(state)
    for array in state.values():
        array[:] = 0
    np.testing.assert_array_equal(detector.decision_function(readings), before)
    np.testing.assert_array_equal(restored.decision_function(readings), before)


def test_hyper_parameters_and_reads_survive_json() -> None:
    detector = NearestNeighbours((LAST,), k=3)
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert NearestNeighbours.from_hyper_parameters(fields) == detector
