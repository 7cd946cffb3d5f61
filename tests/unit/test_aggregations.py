"""How the logits of tokens become one score, against the formulas written out."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from demur.core.readings import Array
from demur.detectors._aggregations import (
    Aggregation,
    Ema,
    Highest,
    Last,
    Mean,
    Pool,
    Smoothing,
    Softmax,
    Window,
)
from demur.detectors._token_losses import ScoreLoss, SegmentLoss, TokenLoss, counted, smoothed

LENGTHS = (1, 2, 3, 4, 5, 9, 10, 11, 30)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax_mean(values: list[float], temperature: float) -> float:
    weights = [math.exp(value / temperature) for value in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def windows(values: list[float], size: int) -> list[float]:
    if len(values) < size:
        return [sum(values) / len(values)]
    return [sum(values[i : i + size]) / size for i in range(len(values) - size + 1)]


def averages(values: list[float], gain: float) -> list[float]:
    """Return the moving averages by their weights, rather than one from the other."""
    first = math.ceil(1 / gain)
    found = []
    for end in range(min(first, len(values)), len(values) + 1):
        begin, rest = values[:first], values[first:end]
        kept = (1 - gain) ** len(rest)
        recent = sum(gain * (1 - gain) ** age * v for age, v in enumerate(reversed(rest)))
        found.append(kept * sum(begin) / len(begin) + recent)
    return found


def mean_of_highest(values: list[float], count: int) -> float:
    highest = sorted(values, reverse=True)[:count]
    return sum(highest) / len(highest)


RULES: dict[str, tuple[Smoothing, Pool, Callable[[list[float]], float]]] = {
    "last": (Window(), Last(), lambda s: s[-1]),
    "mean": (Window(), Mean(), lambda s: sum(s) / len(s)),
    "max": (Window(), Highest(), max),
    "softmax": (Window(), Softmax(0.7), lambda s: softmax_mean(s, 0.7)),
    "ema": (Ema(0.1), Highest(), lambda s: max(averages(s, 0.1))),
    "fast ema": (Ema(0.3), Last(), lambda s: averages(s, 0.3)[-1]),
    "window_mean": (Window(4), Highest(), lambda s: max(windows(s, 4))),
    "top_windows": (Window(4), Highest(3), lambda s: mean_of_highest(windows(s, 4), 3)),
}
LEARNED = ["max", "softmax", "ema", "window_mean", "top_windows"]


@pytest.fixture(params=sorted(RULES))
def rule(request: pytest.FixtureRequest) -> tuple[Aggregation, Callable[[list[float]], float]]:
    smoothing, pool, formula = RULES[request.param]
    return Aggregation(smoothing, pool), formula


def logits_of(num_tokens: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, num_tokens)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_score_is_that_of_the_formula(
    rule: tuple[Aggregation, Callable[[list[float]], float]], num_tokens: int
) -> None:
    aggregation, formula = rule
    logits = logits_of(num_tokens)
    assert aggregation.score(logits) == pytest.approx(formula(logits.tolist()), abs=1e-12)


def test_after_each_token_a_growing_text_has_the_score_of_the_formula(
    rule: tuple[Aggregation, Callable[[list[float]], float]],
) -> None:
    aggregation, formula = rule
    texts = np.stack([logits_of(40, seed=seed) for seed in range(3)])
    state = aggregation.start(3)
    for end in range(1, 41):
        state, scores = aggregation.update(state, texts[:, end - 1])
        expected = [formula(text[:end].tolist()) for text in texts]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)


def test_the_state_of_a_growing_text_does_not_grow(
    rule: tuple[Aggregation, Callable[[list[float]], float]],
) -> None:
    aggregation, _ = rule
    state = before = aggregation.start(2)
    for logit in logits_of(100):
        state, _ = aggregation.update(state, np.array([logit, -logit]))
    assert {name: array.shape for name, array in state.items()} == {
        name: array.shape for name, array in before.items()
    }


def test_logits_too_large_for_an_exponential_are_aggregated() -> None:
    aggregation = Aggregation(Window(), Softmax(1.0))
    logits = np.array([-2000.0, 1500.0, 3000.0, 2999.0])
    expected = 3000 - 1 / (1 + math.e)
    assert aggregation.score(logits) == pytest.approx(expected)
    state = aggregation.start(1)
    for logit in logits:
        state, scores = aggregation.update(state, np.array([logit]))
    assert scores[0] == pytest.approx(expected)


def padded_logits(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with something large in the padding, which must count for nothing."""
    rows = [torch.tensor(logits_of(length, seed=length)) for length in lengths]
    tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=50.0)
    return tensor, torch.tensor(lengths)


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_trained_is_the_cross_entropy_of_the_score(name: str) -> None:
    smoothing, pool, formula = RULES[name]
    logits, lengths = padded_logits(LENGTHS)
    unsafe = torch.tensor([float(row % 2) for row in range(len(LENGTHS))], dtype=torch.float64)
    losses = ScoreLoss(Aggregation(smoothing, pool))(logits, lengths, unsafe)
    for row, length in enumerate(LENGTHS):
        score = formula(logits[row, :length].tolist())
        expected = -math.log(sigmoid(score if row % 2 else -score))
        assert losses[row].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_loss_of_segments_weighs_each_by_how_harmful_it_looks(temperature: float) -> None:
    logits, lengths = padded_logits(LENGTHS)
    for label in (0.0, 1.0):
        unsafe = torch.full((len(LENGTHS),), label, dtype=torch.float64)
        losses = SegmentLoss(Window(4), temperature)(logits, lengths, unsafe)
        for row, length in enumerate(LENGTHS):
            means = windows(logits[row, :length].tolist(), 4)
            weights = [math.exp(mean / temperature) for mean in means]
            entropies = [-math.log(sigmoid(mean if label else -mean)) for mean in means]
            total = sum(w * e for w, e in zip(weights, entropies, strict=True))
            assert losses[row].item() == pytest.approx(total / sum(weights), rel=1e-9, abs=1e-9)


def test_the_spread_of_windows_costs_safe_prompts_only() -> None:
    logits, lengths = padded_logits((30, 30))
    aggregation, unsafe = Aggregation(Window(4), Highest(3)), torch.tensor([0.0, 1.0]).double()
    without = ScoreLoss(aggregation)(logits, lengths, unsafe)
    added = ScoreLoss(aggregation, spread_penalty=0.01)(logits, lengths, unsafe) - without
    means = np.array(windows(logits[0].tolist(), 4))
    weights = np.exp(means) / np.exp(means).sum()
    variance = float(np.cov(means, aweights=weights, bias=True))
    np.testing.assert_allclose(added, [0.01 * variance, 0], rtol=1e-9, atol=1e-12)


LOSSES: dict[str, TokenLoss] = {
    **{name: ScoreLoss(Aggregation(*RULES[name][:2]), spread_penalty=0.5) for name in LEARNED},
    "segments": SegmentLoss(Window(4), 0.8),
    "averages": SegmentLoss(Ema(0.3), 0.8),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_slope_of_a_loss_is_that_of_finite_differences(name: str) -> None:
    logits, lengths = padded_logits((2, 12))
    unsafe = torch.tensor([1.0, 0.0], dtype=torch.float64)
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](logits, lengths, unsafe).sum(), logits)
    step = 1e-6
    for row, token in [(0, 0), (0, 1), (0, 5), (1, 0), (1, 6), (1, 11)]:
        sums = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[row, token] += sign * step
            sums.append(LOSSES[name](moved, lengths, unsafe).sum().item())
        assert slope[row, token].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("smoothing", [Window(4), Ema(0.3)])
def test_padding_is_no_segment(smoothing: Smoothing) -> None:
    logits, lengths = padded_logits(LENGTHS)
    segments, is_segment = smoothed(logits, smoothing), counted(logits, lengths, smoothing)
    for row, length in enumerate(LENGTHS):
        expected = smoothing.segments(logits[row, :length].numpy())
        np.testing.assert_allclose(segments[row][is_segment[row]], expected, rtol=0, atol=1e-12)
