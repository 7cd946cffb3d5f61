"""`linear` is scikit-learn's logistic regression on standardised states, folded into raw ones."""

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Texts
from demur.detectors._logistic import balanced_weights
from demur.detectors.linear import Linear

FIRST, SECOND = CaptureSpec((0, 1)), CaptureSpec((2,), positions="user", pool="mean")
JOINED = CaptureSpec((0, 1, 2))


def raw_states(num_prompts: int = 150, *, num_layers: int = 2, d_model: int = 6) -> Array:
    """Return states [prompt, layer, d_model] whose coordinates differ in place and scale."""
    generator = np.random.default_rng(0)
    shape = (num_layers, d_model)
    scale, place = generator.uniform(0.1, 30, shape), generator.uniform(-90, 90, shape)
    noise = generator.standard_normal((num_prompts, *shape))
    noise[labels(num_prompts), 0] += 0.7
    states: Array = (noise * scale + place).astype(np.float32)
    return states


def labels(num_prompts: int) -> Array:
    unsafe: Array = np.arange(num_prompts) % 3 == 0
    return unsafe


def targets(num_prompts: int = 150, *, source: Array | None = None) -> Targets:
    if source is None:
        source = np.where(np.random.default_rng(1).random(num_prompts) < 0.2, "small", "large")
    return Targets(labels(num_prompts), np.arange(num_prompts), source)


def standardised(states: Array) -> Array:
    flat = states.reshape(len(states), -1).astype(np.float64)
    scaled: Array = StandardScaler().fit_transform(flat)
    return scaled


def logistic(states: Array, *, c: float, weights: Array) -> LogisticRegression:
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6)
    return model.fit(standardised(states), labels(len(states)), sample_weight=weights)


@pytest.mark.parametrize("balance", ["none", "labels", "sources"])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_the_folded_read_out_equals_scikit_learn_on_standardised_states(
    c: float, balance: str
) -> None:
    states, known = raw_states(), targets()
    detector = Linear((FIRST,), c=c, balance=balance)  # type: ignore[arg-type]  # parametrised
    scores = detector.fit(Readings({FIRST: states}), known, seed=0).decision_function(
        Readings({FIRST: states})
    )
    reference = logistic(states, c=c, weights=balanced_weights(known, balance))
    expected = reference.decision_function(standardised(states))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_direction_is_that_of_the_exact_optimum() -> None:
    states, known = raw_states(), targets()
    detector = Linear((FIRST,), c=1e-2).fit(Readings({FIRST: states}), known, seed=0)
    x = standardised(states).astype(np.float64)
    exact = LogisticRegression(C=1e-2, max_iter=1000, tol=1e-12)
    exact.fit(x, known.unsafe, sample_weight=balanced_weights(known, "sources"))
    scale = states.reshape(len(states), -1).std(0, dtype=np.float64)
    found, wanted = detector.readout().weights[FIRST].reshape(-1) * scale, exact.coef_[0]
    cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine > 1 - 1e-6


def test_the_seed_changes_nothing() -> None:
    readings, known = Readings({FIRST: raw_states()}), targets()
    first, second = (Linear((FIRST,)).fit(readings, known, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(
        first.decision_function(readings), second.decision_function(readings)
    )


def test_two_reads_are_one_joined_problem() -> None:
    states, known = raw_states(num_layers=3), targets()
    apart = Readings({FIRST: states[:, :2], SECOND: states[:, 2:]})
    together = Readings({JOINED: states})
    two = Linear((FIRST, SECOND), c=0.1).fit(apart, known, seed=0)
    one = Linear((JOINED,), c=0.1).fit(together, known, seed=0)
    weights = two.readout().weights
    np.testing.assert_array_equal(
        np.concatenate([weights[FIRST], weights[SECOND]]), one.readout().weights[JOINED]
    )
    np.testing.assert_allclose(
        two.decision_function(apart), one.decision_function(together), rtol=1e-12, atol=1e-12
    )


def test_reads_of_different_numbers_of_layers_are_joined() -> None:
    states, known = raw_states(), targets()
    readings = Readings({FIRST: states, SECOND: states[:, :1]})
    detector = Linear((FIRST, SECOND), c=0.1).fit(readings, known, seed=0)
    shapes = {spec: weights.shape for spec, weights in detector.readout().weights.items()}
    assert shapes == {FIRST: (2, 6), SECOND: (1, 6)}


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e4])
def test_a_constant_feature_gets_no_weight(constant: float) -> None:
    states = raw_states()
    states[:, 1, 2] = constant
    detector = Linear((FIRST,), c=1.0).fit(Readings({FIRST: states}), targets(), seed=0)
    weights = detector.readout().weights[FIRST]
    assert weights[1, 2] == 0
    assert np.count_nonzero(weights) == weights.size - 1


def masses(known: Targets, weights: Array) -> Mapping[tuple[bool, str], float]:
    """Return the summed weights of each source of each label."""
    keys = list(zip(known.unsafe.tolist(), known.source.tolist(), strict=True))
    return {
        key: float(weights[[other == key for other in keys]].sum()) for key in dict.fromkeys(keys)
    }


@pytest.mark.parametrize("balance", ["none", "labels", "sources"])
def test_weights_have_mean_one(balance: str) -> None:
    assert balanced_weights(targets(), balance).mean() == pytest.approx(1)


@pytest.mark.parametrize("balance", ["labels", "sources"])
def test_both_labels_weigh_the_same(balance: str) -> None:
    known = targets()
    weights = balanced_weights(known, balance)
    assert weights[known.unsafe].sum() == pytest.approx(weights[~known.unsafe].sum())


def test_the_sources_of_a_label_weigh_the_same() -> None:
    source = np.array(["large"] * 100 + ["medium"] * 40 + ["small"] * 10)
    source[labels(150) & (source == "medium")] = "large"  # the labels have different sources
    known = targets(source=source)
    of_sources = masses(known, balanced_weights(known, "sources"))
    assert len(of_sources) == 5
    for is_unsafe, num_sources in ((True, 2), (False, 3)):
        of_label = [mass for (label, _), mass in of_sources.items() if label == is_unsafe]
        assert of_label == pytest.approx([75 / num_sources] * num_sources)


def test_balanced_labels_leave_sources_alone() -> None:
    known = targets()
    weights = balanced_weights(known, "labels")
    assert len(np.unique(weights[known.unsafe])) == 1
    assert len(np.unique(weights[~known.unsafe])) == 1


def test_no_balance_weighs_each_prompt_alike() -> None:
    np.testing.assert_array_equal(balanced_weights(targets(), "none"), np.ones(150))


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan")])
def test_a_penalty_out_of_range_is_refused(c: float) -> None:
    with pytest.raises(ConfigError, match="more than 0"):
        Linear((FIRST,), c=c)


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ConfigError, match="'topics': expected one of"):
        Linear((FIRST,), balance="topics")  # type: ignore[arg-type]


def test_no_iterations_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        Linear((FIRST,), max_iterations=0)


@pytest.mark.parametrize("read", [Texts(), CaptureSpec((0,), positions="all")], ids=str)
def test_reads_that_are_not_pooled_are_refused(read: Texts | CaptureSpec) -> None:
    with pytest.raises(DataError, match="pooled"):
        Linear((read,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)


def test_a_read_that_is_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="a read is given twice"):
        Linear((FIRST, FIRST)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)


def test_readings_that_lack_a_read_are_refused() -> None:
    with pytest.raises(CapabilityError, match="do not hold"):
        Linear((SECOND,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)


def test_a_state_of_other_reads_is_refused() -> None:
    fitted = Linear((FIRST,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)
    with pytest.raises(DataError, match=r"expected \['weights.0', 'weights.1', 'bias'\]"):
        Linear((FIRST, SECOND)).load_state(fitted.state())


def test_weights_of_other_layers_are_refused() -> None:
    fitted = Linear((FIRST,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)
    with pytest.raises(DataError, match="shape"):
        Linear((SECOND,)).load_state(fitted.state())


@pytest.mark.parametrize("num_values", [0, 2])
def test_a_bias_that_is_not_one_number_is_refused(num_values: int) -> None:
    fitted = Linear((FIRST,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0)
    with pytest.raises(DataError, match=f"bias has {num_values} values: expected one"):
        Linear((FIRST,)).load_state({**fitted.state(), "bias": np.zeros(num_values)})


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["weights.0", "bias"])
def test_a_state_that_is_not_finite_is_refused(name: str, broken: float) -> None:
    state = Linear((FIRST,)).fit(Readings({FIRST: raw_states()}), targets(), seed=0).state()
    state[name].flat[-1] = broken
    with pytest.raises(DataError, match="finite"):
        Linear((FIRST,)).load_state(state)


@pytest.mark.parametrize("fields", [[1], "linear", None])
def test_hyper_parameters_that_are_no_object_are_refused(fields: object) -> None:
    with pytest.raises(DataError, match="expected an object"):
        Linear.from_hyper_parameters(fields)  # type: ignore[arg-type]


def test_hyper_parameters_and_reads_survive_json() -> None:
    detector = Linear((FIRST, SECOND), c=0.3, balance="labels", max_iterations=7)
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert Linear.from_hyper_parameters(fields) == detector


def test_wide_states_of_odd_width_score_alike_in_any_batch() -> None:
    generator = np.random.default_rng(0)
    states = generator.standard_normal((33, 2, 1537)).astype(np.float32)
    readout = LinearReadout({FIRST: generator.standard_normal((2, 1537)).astype(np.float32)}, 0.1)
    readings = Readings({FIRST: states})
    alone = [readout.score(readings.take([row]))[0] for row in range(33)]
    np.testing.assert_array_equal(readout.score(readings), alone)
    weights = readout.weights[FIRST].astype(np.float64)
    exact = [0.1 + math.fsum((row.astype(np.float64) * weights).ravel()) for row in states]
    np.testing.assert_allclose(alone, exact, rtol=1e-13)
