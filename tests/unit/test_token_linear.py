"""`token_linear` weighs every token; what it is trained on, and what it finds in long texts."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors import _token_fit as fitting
from demur.detectors._aggregations import Aggregation, Ema, Highest, Softmax, Window
from demur.detectors._token_losses import ScoreLoss, SegmentLoss, TokenLoss
from demur.detectors._tokens import moments
from demur.detectors.linear import Linear
from demur.detectors.token_linear import TokenLinear

TOKENS = CaptureSpec((0, 1), positions="all")
LAST, MEAN = CaptureSpec((0, 1)), CaptureSpec((0, 1), positions="all", pool="mean")
D_MODEL = 6
DIRECTION = np.ones((2, 1, D_MODEL)) / np.sqrt(2 * D_MODEL)
DIRECTION[1, 0, 2] = 0  # of the constant feature
LEARNED = ["max", "softmax", "ema", "window_mean", "top_windows"]


def states_of(num_tokens: int, generator: np.random.Generator) -> Array:
    """Return noise [layer, token, d_model] that is not standardised, with one constant feature."""
    states = 30 * generator.standard_normal((2, num_tokens, D_MODEL)) - 90
    states[1, :, 2] = 7
    return states


def planted(
    num_prompts: int,
    *,
    seed: int,
    tokens: tuple[int, int] = (20, 40),
    marked: int = 20,
    strength: float = 2.0,
) -> tuple[Readings, Array]:
    """Return prompts of which every second has a marked stretch of tokens somewhere.

    Texts differ a little in level, whatever their label.
    """
    generator = np.random.default_rng(seed)
    unsafe = np.arange(num_prompts) % 2 == 1
    prompts = []
    for is_unsafe in unsafe:
        states = states_of(int(generator.integers(*tokens)), generator)
        states += 30 * DIRECTION * generator.normal(0, 0.3)
        start = int(generator.integers(states.shape[1] - marked + 1))
        states[:, start : start + marked] += 30 * strength * DIRECTION * is_unsafe
        prompts.append(states.astype(np.float32))
    return Readings({TOKENS: tuple(prompts)}), unsafe


def known_of(unsafe: Array, *, num_sources: int = 1) -> Targets:
    numbers = np.arange(len(unsafe))
    return Targets(unsafe, numbers, np.minimum(numbers % 5, num_sources - 1))


def token_linear(aggregation: str, **fields: Any) -> TokenLinear:
    return TokenLinear((TOKENS,), aggregation=aggregation, **fields)  # type: ignore[arg-type]


def fitted(aggregation: str, **fields: Any) -> TokenLinear:
    readings, unsafe = planted(60, seed=1)
    return token_linear(aggregation, **fields).fit(readings, known_of(unsafe), seed=0)


def as_linear(readings: Readings, spec: CaptureSpec) -> Readings:
    """Return the mean or the last state of each prompt."""
    prompts = readings.ragged(TOKENS)
    pooled = [states.mean(1) if spec.pool == "mean" else states[:, -1] for states in prompts]
    return Readings({spec: np.stack(pooled)})


@pytest.mark.parametrize(("aggregation", "spec"), [("mean", MEAN), ("last", LAST)])
def test_mean_and_last_are_logistic_regressions_on_one_state(
    aggregation: str, spec: CaptureSpec
) -> None:
    readings, unsafe = planted(60, seed=1)
    detector = token_linear(aggregation, c=0.01).fit(readings, known_of(unsafe), seed=0)
    linear = Linear((spec,), c=0.01).fit(as_linear(readings, spec), known_of(unsafe), seed=0)
    expected = linear.decision_function(as_linear(readings, spec))
    np.testing.assert_allclose(detector.decision_function(readings), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("balance", ["sources", "labels", "none"])
@pytest.mark.parametrize("aggregation", LEARNED)
def test_of_prompts_of_one_token_every_aggregation_is_a_logistic_regression(
    aggregation: str, balance: str
) -> None:
    readings, unsafe = planted(90, seed=1, tokens=(1, 2), marked=1)
    targets = known_of(unsafe, num_sources=3)
    detector = token_linear(aggregation, c=0.02, balance=balance).fit(readings, targets, seed=0)
    linear = Linear((LAST,), c=0.02, balance=balance)  # type: ignore[arg-type]
    linear.fit(as_linear(readings, LAST), targets, seed=0)
    expected = linear.decision_function(as_linear(readings, LAST))
    np.testing.assert_allclose(detector.decision_function(readings), expected, rtol=0, atol=2e-3)


LOSSES: dict[str, TokenLoss] = {
    "softmax": ScoreLoss(Aggregation(Window(), Softmax(1.0))),
    "top_windows": ScoreLoss(Aggregation(Window(4), Highest(3)), spread_penalty=0.3),
    "ema": ScoreLoss(Aggregation(Ema(0.1), Highest())),
    "segments": SegmentLoss(Window(16), 1.0),
}


def objective_of(loss: TokenLoss, *, batch_size: int = 7) -> fitting.Objective:
    readings, unsafe = planted(20, seed=3)
    weights = np.linspace(0.5, 1.5, 20)
    problem = fitting.Problem(readings.ragged(TOKENS), unsafe, weights, c=0.1, max_iterations=200)
    mean, scale = (array.reshape(-1) for array in moments(problem.prompts))
    return fitting.Objective(problem, loss, mean=mean, scale=scale, batch_size=batch_size)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_objective_and_its_gradient_are_those_of_each_prompt_by_itself(name: str) -> None:
    objective = objective_of(LOSSES[name])
    begin = np.random.default_rng(0).normal(0, 0.3, 2 * D_MODEL + 1)
    parameters = torch.tensor(begin, requires_grad=True)
    total = (parameters[:-1] ** 2).sum() / (2 * 0.1)
    for row, states in enumerate(objective.problem.prompts):
        joined = np.concatenate([states[0], states[1]], axis=1)  # [token, feature]
        tokens = torch.tensor((joined - objective.mean) / objective.scale)
        logits = tokens @ parameters[:-1] + parameters[-1]
        unsafe = torch.tensor([float(row % 2)], dtype=torch.float64)
        loss = LOSSES[name](logits[None], torch.tensor([len(logits)]), unsafe)
        total = total + objective.problem.weights[row] * loss[0]
    (total / 20).backward()  # type: ignore[no-untyped-call]
    value, gradient = objective(begin)
    assert value == pytest.approx(total.item() / 20, abs=1e-5)
    assert parameters.grad is not None
    np.testing.assert_allclose(gradient, parameters.grad.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "segments"])
def test_a_fit_ends_where_the_objective_is_flat(name: str) -> None:
    objective = objective_of(LOSSES[name])
    start = np.zeros(2 * D_MODEL), 0.0
    weights, bias = fitting.fit_tokens(objective.problem, LOSSES[name], start=start, batch_size=20)
    scaled = weights * np.where(np.isinf(objective.scale), 0, objective.scale)
    value, gradient = objective(np.append(scaled, bias + weights @ objective.mean))
    assert value < objective(np.zeros(2 * D_MODEL + 1))[0]
    assert np.abs(gradient).max() < 1e-4


def test_batches_change_memory_and_no_score() -> None:
    readings, _ = planted(20, seed=2)
    one, seven = (fitted("window_mean", batch_size=size) for size in (60, 7))
    scores = one.decision_function(readings)
    np.testing.assert_allclose(seven.decision_function(readings), scores, rtol=0, atol=1e-3)


def test_a_stronger_penalty_gives_smaller_weights() -> None:
    strong, weak = (fitted("window_mean", c=c).state()["weights"] for c in (1e-4, 1e-2))
    assert np.linalg.norm(strong) < 0.5 * np.linalg.norm(weak)


@pytest.mark.parametrize(
    ("aggregation", "is_found"),
    [
        ("mean", False),
        ("last", False),
        ("max", True),
        ("ema", True),
        ("window_mean", True),
        ("top_windows", True),
    ],
)
def test_a_harmful_stretch_of_a_long_text_is_found_unless_it_is_diluted(
    aggregation: str, *, is_found: bool
) -> None:
    readings, unsafe = planted(60, seed=5, tokens=(1500, 2500), strength=6)
    auroc = roc_auc_score(unsafe, fitted(aggregation).decision_function(readings))
    assert auroc > 0.95 if is_found else auroc < 0.8


def test_one_loud_token_of_a_safe_text_fools_the_maximum_and_no_window() -> None:
    readings, unsafe = planted(60, seed=6, tokens=(60, 90))
    prompts = [states.copy() for states in readings.ragged(TOKENS)]
    for states, is_unsafe in zip(prompts, unsafe, strict=True):
        states[:, 30:31] += 250 * DIRECTION * (not is_unsafe)
    loud = Readings({TOKENS: tuple(prompts)})
    assert roc_auc_score(unsafe, fitted("max").decision_function(loud)) < 0.1
    assert roc_auc_score(unsafe, fitted("top_windows").decision_function(loud)) > 0.95


def test_what_is_trained_on_windows_may_run_otherwise() -> None:
    readings, _ = planted(10, seed=2)
    same = fitted("window_mean")
    for running, rule in (
        ("ema", Aggregation(Ema(0.1), Highest())),
        ("max", Aggregation(Window(), Highest())),
    ):
        other = fitted("window_mean", running=running)
        state = other.state()
        np.testing.assert_array_equal(state["weights"], same.state()["weights"])
        expected = [
            rule.score(
                np.einsum("ltd,ld->t", states, state["weights"], dtype=float) + state["bias"]
            )
            for states in readings.ragged(TOKENS)
        ]
        np.testing.assert_allclose(other.decision_function(readings), expected, rtol=0, atol=1e-9)


def test_tokens_before_the_last_ones_are_scored_and_not_fitted_to() -> None:
    readings, unsafe = planted(40, seed=1, marked=8)
    ends = Readings({TOKENS: tuple(states[:, -12:] for states in readings.ragged(TOKENS))})
    whole, cut = (
        token_linear("window_mean", max_fit_tokens=12).fit(those, known_of(unsafe), seed=0)
        for those in (readings, ends)
    )
    np.testing.assert_array_equal(whole.state()["weights"], cut.state()["weights"])
    scores = whole.decision_function(readings)
    assert np.all(whole.decision_function(ends) != scores)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aggregation", "median"),
        ("running", "mean"),
        ("balance", "all"),
        ("window", 0),
        ("num_windows", 0),
        ("gain", 0.0),
        ("gain", 1.5),
        ("temperature", 0.0),
        ("spread_penalty", -1.0),
        ("c", 0.0),
        ("max_fit_tokens", 0),
        ("max_iterations", 0),
        ("batch_size", 0),
    ],
)
def test_a_value_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        TokenLinear((TOKENS,), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("reads", [(LAST,), (MEAN,), (TOKENS, CaptureSpec((1,), positions="all"))])
def test_reads_that_are_not_one_capture_by_token_are_refused(
    reads: tuple[CaptureSpec, ...],
) -> None:
    with pytest.raises(ConfigError, match="one capture by token"):
        TokenLinear(reads)


def test_a_prompt_without_tokens_is_refused() -> None:
    empty = Readings({TOKENS: (np.zeros((2, 0, D_MODEL), np.float32),)})
    with pytest.raises(DataError, match="no tokens"):
        fitted("mean").decision_function(empty)


def test_prompts_of_different_models_are_refused() -> None:
    readings, unsafe = planted(4, seed=1)
    prompts = list(readings.ragged(TOKENS))
    prompts[2] = prompts[2][:, :, :3]
    with pytest.raises(DataError, match="differ in shape"):
        token_linear("mean").fit(Readings({TOKENS: tuple(prompts)}), known_of(unsafe), seed=0)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("weights", np.ones((3, D_MODEL)), "shapes"),
        ("weights", np.full((2, D_MODEL), np.nan), "finite"),
        ("bias", np.ones(2), "shapes"),
        ("bias", np.array([np.inf]), "finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, array: Array, message: str) -> None:
    state = {**fitted("mean").state(), name: array}
    with pytest.raises(DataError, match=message):
        token_linear("mean").load_state(state)


def test_moments_are_those_of_all_tokens_of_each_layer() -> None:
    readings, _ = planted(5, seed=4)
    prompts = readings.ragged(TOKENS)
    mean, scale = moments(prompts)
    joined = np.concatenate(prompts, axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, joined.mean(1), rtol=1e-12)
    expected = joined.std(1)
    expected[1, 2] = np.inf  # it never changes
    np.testing.assert_allclose(scale, expected, rtol=1e-9)
