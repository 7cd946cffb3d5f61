"""`mlp` is scikit-learn's perceptron on standardised states, scored without scikit-learn."""

import json
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors._logistic import balanced_weights
from demur.detectors.linear import Linear
from demur.detectors.mlp import Mlp

FIRST, SECOND = CaptureSpec((0, 1)), CaptureSpec((2,), positions="user", pool="mean")
JOINED = CaptureSpec((0, 1, 2))
NUM_PROMPTS = 150


def raw_states(*, num_layers: int = 2, d_model: int = 6) -> Array:
    """Return states [prompt, layer, d_model] whose coordinates differ in place and scale."""
    generator = np.random.default_rng(0)
    shape = (num_layers, d_model)
    scale, place = generator.uniform(0.1, 30, shape), generator.uniform(-90, 90, shape)
    noise = generator.standard_normal((NUM_PROMPTS, *shape))
    noise[unsafe(), 0] += 0.7
    states: Array = (noise * scale + place).astype(np.float32)
    return states


def unsafe() -> Array:
    is_unsafe: Array = np.arange(NUM_PROMPTS) % 3 == 0
    return is_unsafe


def targets() -> Targets:
    source = np.where(np.random.default_rng(1).random(NUM_PROMPTS) < 0.2, "small", "large")
    return Targets(unsafe(), np.arange(NUM_PROMPTS), source)


def standardised(states: Array) -> Array:
    flat = states.reshape(len(states), -1)
    mean, scale = flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64)
    scaled: Array = ((flat - mean) / scale).astype(np.float32)
    return scaled


def fitted(seed: int = 0, **fields: object) -> tuple[Mlp, Readings]:
    readings = Readings({FIRST: raw_states()})
    detector = Mlp((FIRST,), **{"hidden": 32, **fields})  # type: ignore[arg-type]
    return detector.fit(readings, targets(), seed=seed), readings


@pytest.mark.parametrize("balance", ["none", "labels", "sources"])
@pytest.mark.parametrize("batch_size", [32, 1000])
def test_scores_are_the_logits_of_scikit_learn(balance: str, batch_size: int) -> None:
    x = standardised(raw_states())
    reference = MLPClassifier(
        (32,),
        alpha=0.5,
        batch_size=min(batch_size, NUM_PROMPTS),
        learning_rate_init=3e-3,
        max_iter=15,
        tol=0,
        n_iter_no_change=1000,
        random_state=7,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference.fit(x, unsafe(), sample_weight=balanced_weights(targets(), balance))
    detector, readings = fitted(
        7, balance=balance, batch_size=batch_size, alpha=0.5, lr=3e-3, epochs=15
    )
    probability = reference.predict_proba(x.astype(np.float64))[:, 1]
    logits = np.log(probability) - np.log1p(-probability)
    np.testing.assert_allclose(detector.decision_function(readings), logits, rtol=0, atol=1e-6)


def test_a_loss_that_no_longer_falls_ends_nothing() -> None:
    biases = [
        fitted(epochs=epochs, lr=1e-6, batch_size=1000)[0].state()["score_bias"]
        for epochs in (30, 45)  # by then the loss has long fallen by less than any tolerance
    ]
    # Steps of Adam are of size lr where the gradient hardly changes.
    np.testing.assert_allclose(np.abs(biases[1] - biases[0]), [15e-6], rtol=0.2)


def test_labels_that_no_line_parts_are_learned() -> None:
    generator = np.random.default_rng(0)
    states = generator.standard_normal((400, 1, 4)).astype(np.float32)
    apart = states[:, 0, 0] * states[:, 0, 1] > 0
    known = Targets(apart, np.arange(400), np.zeros(400))
    read = CaptureSpec((0,))
    readings = Readings({read: states})
    train, test = readings.take(range(300)), readings.take(range(300, 400))
    of_train = Targets(apart[:300], known.group[:300], known.source[:300])
    mlp = Mlp((read,), hidden=64, epochs=60, lr=1e-2).fit(train, of_train, seed=0)
    linear = Linear((read,), c=1.0).fit(train, of_train, seed=0)
    assert roc_auc_score(apart[300:], mlp.decision_function(test)) > 0.95
    assert roc_auc_score(apart[300:], linear.decision_function(test)) < 0.7


def test_another_seed_gives_other_weights() -> None:
    (first, readings), (second, _) = fitted(0), fitted(1)
    assert np.any(first.decision_function(readings) != second.decision_function(readings))


def test_fitting_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state(legacy=False)
    fitted()
    np.testing.assert_equal(np.random.get_state(legacy=False), before)


def test_two_reads_are_one_joined_problem() -> None:
    states = raw_states(num_layers=3)
    apart = Readings({FIRST: states[:, :2], SECOND: states[:, 2:]})
    together = Readings({JOINED: states})
    two = Mlp((FIRST, SECOND), hidden=8).fit(apart, targets(), seed=0)
    one = Mlp((JOINED,), hidden=8).fit(together, targets(), seed=0)
    np.testing.assert_array_equal(two.decision_function(apart), one.decision_function(together))


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e4])
def test_a_constant_feature_changes_no_score(constant: float) -> None:
    states = raw_states()
    states[:, 1, 2] = constant
    detector = Mlp((FIRST,), hidden=8).fit(Readings({FIRST: states}), targets(), seed=0)
    moved = states.copy()
    moved[:, 1, 2] += 1000
    np.testing.assert_array_equal(
        detector.decision_function(Readings({FIRST: states})),
        detector.decision_function(Readings({FIRST: moved})),
    )


@pytest.mark.parametrize("name", ["hidden", "epochs", "batch_size"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0: expected 1 or more"):
        Mlp((FIRST,), **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("lr", 0.0), ("alpha", -1.0), ("lr", float("nan"))])
def test_a_rate_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}: expected"):
        Mlp((FIRST,), **{name: value})  # type: ignore[arg-type]


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ConfigError, match="'topics': expected one of"):
        Mlp((FIRST,), balance="topics")  # type: ignore[arg-type]


def test_a_state_of_another_size_is_refused() -> None:
    state = fitted(hidden=32)[0].state()
    with pytest.raises(DataError, match=r"hidden_weights has shape \(12, 32\): expected \(12, 16"):
        Mlp((FIRST,), hidden=16).load_state(state)


def test_an_array_too_many_is_refused() -> None:
    state = fitted()[0].state()
    with pytest.raises(DataError, match="the state holds"):
        Mlp((FIRST,), hidden=32).load_state({**state, "extra": np.zeros(1)})


@pytest.mark.parametrize("name", ["mean", "scale", "hidden_weights", "score_bias"])
def test_a_state_that_is_not_finite_is_refused(name: str) -> None:
    state = fitted()[0].state()
    state[name].flat[-1] = np.nan
    with pytest.raises(DataError, match=f"{name} is not finite"):
        Mlp((FIRST,), hidden=32).load_state(state)


def test_changing_a_state_changes_no_detector() -> None:
    detector, readings = fitted()
    before = detector.decision_function(readings)
    state = detector.state()
    restored = Mlp((FIRST,), hidden=32).load_state(state)
    for array in state.values():
        array[:] = 0
    np.testing.assert_array_equal(detector.decision_function(readings), before)
    np.testing.assert_array_equal(restored.decision_function(readings), before)


def test_wide_states_of_odd_width_score_alike_in_any_batch() -> None:
    generator = np.random.default_rng(0)
    readings = Readings({FIRST: generator.standard_normal((33, 2, 513)).astype(np.float32)})
    known = Targets(np.arange(33) % 2 == 0, np.arange(33), np.zeros(33))
    detector = Mlp((FIRST,), hidden=33, epochs=1).fit(readings, known, seed=0)
    alone = [detector.decision_function(readings.take([row]))[0] for row in range(33)]
    np.testing.assert_array_equal(detector.decision_function(readings), alone)


def test_hyper_parameters_and_reads_survive_json() -> None:
    detector = Mlp((FIRST, SECOND), hidden=3, alpha=0.0, epochs=2, lr=0.1, balance="labels")
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert Mlp.from_hyper_parameters(fields) == detector
