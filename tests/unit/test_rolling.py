"""`rolling` attends within a short window, and the highest window of a text counts."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors import _rolling_fit as fitting
from demur.detectors._rolling import MultiMax, Rolling
from demur.detectors.rolling import RollingAttention

TOKENS = CaptureSpec((0, 1), positions="all")
D_MODEL, WINDOW, NUM_HEADS = 6, 4, 3
DIRECTION = np.ones((2, 1, D_MODEL)) / np.sqrt(2 * D_MODEL)
LENGTHS = (1, 2, 3, 4, 5, 20)
TRAINING = fitting.Training(
    window=WINDOW, d_hidden=8, num_heads=NUM_HEADS, epochs=3, lr=1e-2, weight_decay=0, batch_size=8
)


def planted(
    num_prompts: int, *, seed: int, tokens: tuple[int, int] = (15, 30), marked: int = 8
) -> tuple[Readings, Array]:
    """Return prompts of which every second has a marked stretch of tokens somewhere.

    Texts differ a little in level, whatever their label.
    """
    generator = np.random.default_rng(seed)
    unsafe = np.arange(num_prompts) % 2 == 1
    prompts = []
    for is_unsafe in unsafe:
        states = generator.standard_normal((2, generator.integers(*tokens), D_MODEL))
        states += DIRECTION * generator.normal(0, 0.3)
        start = int(generator.integers(states.shape[1] - marked + 1))
        states[:, start : start + marked] += 4 * DIRECTION * is_unsafe
        prompts.append((30 * states - 90).astype(np.float32))
    return Readings({TOKENS: tuple(prompts)}), unsafe


def known_of(unsafe: Array) -> Targets:
    return Targets(unsafe, np.arange(len(unsafe)), np.zeros(len(unsafe)))


def small(**fields: Any) -> RollingAttention:
    sizes = {"window": WINDOW, "d_hidden": 16, "num_heads": NUM_HEADS, "batch_size": 20}
    return RollingAttention((TOKENS,), **{**sizes, **fields})


@cache
def fitted(running: str = "rolling") -> RollingAttention:
    readings, unsafe = planted(120, seed=1)
    return small(running=running).fit(readings, known_of(unsafe), seed=0)


def heads_of(num_tokens: int, *, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    queries, values = generator.normal(0, 2, (2, num_tokens, NUM_HEADS))
    return queries, values


def attended(queries: Array, values: Array) -> float:
    """Return the sum over heads of the values averaged by attention, written out."""
    total = 0.0
    for head in range(queries.shape[1]):
        weights = [math.exp(query) for query in queries[:, head]]
        products = zip(weights, values[:, head], strict=True)
        total += sum(weight * value for weight, value in products) / sum(weights)
    return total


def highest_window(queries: Array, values: Array) -> float:
    starts = range(max(1, len(queries) - WINDOW + 1))
    windows = [slice(start, start + WINDOW) for start in starts]
    return max(attended(queries[window], values[window]) for window in windows)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_the_score_is_that_of_the_highest_window(num_tokens: int) -> None:
    queries, values = heads_of(num_tokens)
    expected = highest_window(queries, values)
    assert Rolling(WINDOW).score(queries, values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_multimax_sums_the_highest_value_of_each_head(num_tokens: int) -> None:
    queries, values = heads_of(num_tokens)
    expected = sum(max(values[:, head]) for head in range(NUM_HEADS))
    assert MultiMax().score(queries, values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rule", [Rolling(WINDOW), MultiMax()])
def test_a_growing_text_scores_as_the_whole_after_each_token(rule: Rolling | MultiMax) -> None:
    queries, values = heads_of(30)
    state = rule.start(1, NUM_HEADS)
    for end in range(1, 31):
        state, scores = rule.update(state, queries[end - 1 : end], values[end - 1 : end])
        expected = rule.score(queries[:end], values[:end])
        assert scores[0] == pytest.approx(expected, abs=1e-12)


def test_what_is_trained_is_the_score_whatever_the_padding() -> None:
    padded = torch.full((2, len(LENGTHS), 20, NUM_HEADS), 50.0, dtype=torch.float64)
    expected = []
    for row, length in enumerate(LENGTHS):
        queries, values = heads_of(length, seed=row)
        padded[:, row, :length] = torch.tensor(np.stack([queries, values]))
        expected.append(highest_window(queries, values))
    lengths = torch.tensor(LENGTHS)
    scores = fitting.rolling_scores(padded[0], padded[1], lengths, window=WINDOW)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)


def test_padding_and_what_no_window_holds_have_no_gradient() -> None:
    queries, values = (torch.tensor(array)[None].requires_grad_() for array in heads_of(10))
    scores = fitting.rolling_scores(queries, values, torch.tensor([7]), window=WINDOW)
    scores.sum().backward()  # type: ignore[no-untyped-call]
    for tensor in (queries, values):
        assert tensor.grad is not None
        is_used = (tensor.grad[0] != 0).any(1)
        assert not is_used[7:].any()
        assert is_used.sum() == WINDOW


def test_a_score_is_that_of_a_network_on_standardised_tokens() -> None:
    readings, unsafe = planted(40, seed=1)
    detector = small(epochs=2).fit(readings, known_of(unsafe), seed=0)
    arrays = detector.state()
    (states,) = planted(1, seed=9)[0].ragged(TOKENS)
    queries, values = [], []
    for token in range(states.shape[1]):
        hidden = sum(states[layer, token] @ arrays["first_weights"][layer] for layer in range(2))
        hidden = np.maximum(hidden + arrays["first_bias"], 0)
        hidden = np.maximum(hidden @ arrays["second_weights"] + arrays["second_bias"], 0)
        queries.append(hidden @ arrays["queries"])
        values.append(hidden @ arrays["values"])
    expected = highest_window(np.array(queries), np.array(values))
    scores = detector.decision_function(Readings({TOKENS: (states,)}))
    assert scores[0] == pytest.approx(expected, abs=1e-4)


def test_far_and_constant_features_change_no_score() -> None:
    readings, unsafe = planted(40, seed=1)
    moved = []
    for states in readings.ragged(TOKENS):
        far = states.astype(np.float64) / 30 + 3  # mean 0 and spread 1 again
        far[0, :, 0] = 5.0
        moved.append(far)
    near = Readings({TOKENS: tuple(array.astype(np.float32) for array in moved)})
    for array in moved:
        array[:, :, 1] += 512
        array[0, :, 0] = -80.0
    distant = Readings({TOKENS: tuple(array.astype(np.float32) for array in moved)})
    one, other = (small(epochs=2).fit(r, known_of(unsafe), seed=0) for r in (near, distant))
    scores = one.decision_function(near)
    np.testing.assert_allclose(other.decision_function(distant), scores, rtol=0, atol=1e-2)
    assert np.ptp(scores) > 0.1


def test_the_loss_falls() -> None:
    readings, unsafe = planted(60, seed=1)
    _, losses = fitting.train(
        readings.ragged(TOKENS), unsafe, np.ones(60), training=replace(TRAINING, epochs=10), seed=0
    )
    assert losses[-1] < 0.8 * losses[0]


def test_a_prompt_of_weight_zero_is_not_learned_from() -> None:
    readings, unsafe = planted(40, seed=1)
    prompts, weights = list(readings.ragged(TOKENS)), np.ones(40)
    weights[7] = 0
    wrong = unsafe.copy()
    wrong[7] = not wrong[7]
    first, second = (
        fitting.train(prompts, labels, weights, training=TRAINING, seed=0)[0]
        for labels in (unsafe, wrong)
    )
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_the_seed_decides_and_the_generator_of_torch_is_left_alone() -> None:
    readings, unsafe = planted(20, seed=1)
    before = torch.get_rng_state()
    first, second = (small(epochs=1).fit(readings, known_of(unsafe), seed=s) for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.all(first.decision_function(readings) != second.decision_function(readings))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    readings, unsafe = planted(20, seed=1)
    with pytest.raises(DataError, match="lower lr"):
        small(lr=1e30, epochs=3).fit(readings, known_of(unsafe), seed=0)


@pytest.mark.parametrize("running", ["rolling", "multimax"])
def test_a_harmful_stretch_of_a_long_text_is_found_that_was_trained_on_short_ones(
    running: str,
) -> None:
    readings, unsafe = planted(60, seed=5, tokens=(700, 900))
    scores = fitted(running).decision_function(readings)
    assert roc_auc_score(unsafe, scores) > 0.95
    means = [states.mean(1).ravel() @ DIRECTION.ravel() for states in readings.ragged(TOKENS)]
    assert roc_auc_score(unsafe, means) < 0.8


def test_what_runs_as_multimax_was_trained_as_rolling() -> None:
    rolling, multimax = fitted("rolling").state(), fitted("multimax").state()
    for name, array in rolling.items():
        np.testing.assert_array_equal(multimax[name], array)
    readings, _ = planted(10, seed=2)
    scores = fitted("rolling").decision_function(readings)
    assert np.all(fitted("multimax").decision_function(readings) > scores)


def test_tokens_before_the_last_ones_are_scored_and_not_trained_on() -> None:
    readings, unsafe = planted(40, seed=1)
    ends = Readings({TOKENS: tuple(states[:, -6:] for states in readings.ragged(TOKENS))})
    whole, cut = (
        small(max_fit_tokens=6, epochs=2).fit(those, known_of(unsafe), seed=0)
        for those in (readings, ends)
    )
    np.testing.assert_array_equal(whole.state()["queries"], cut.state()["queries"])
    assert np.any(whole.decision_function(ends) != whole.decision_function(readings))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 0),
        ("running", "mean"),
        ("d_hidden", 0),
        ("num_heads", 0),
        ("epochs", 0),
        ("lr", 0.0),
        ("weight_decay", -1.0),
        ("batch_size", 0),
        ("balance", "all"),
        ("max_fit_tokens", 0),
    ],
)
def test_a_value_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        small(**{field: value})


@pytest.mark.parametrize(
    "reads", [(CaptureSpec((0, 1)),), (TOKENS, CaptureSpec((1,), positions="all"))]
)
def test_reads_that_are_not_one_capture_by_token_are_refused(
    reads: tuple[CaptureSpec, ...],
) -> None:
    with pytest.raises(ConfigError, match="one capture by token"):
        RollingAttention(reads)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("first_weights", np.ones((1, D_MODEL, 16)), "shape"),
        ("first_weights", np.ones((2, D_MODEL)), "shape"),
        ("queries", np.ones((16, NUM_HEADS + 1)), "shape"),
        ("second_bias", np.full(16, np.nan), "finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, array: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small().load_state({**fitted().state(), name: array})
