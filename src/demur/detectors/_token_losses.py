"""What linear detectors over tokens are trained on, in torch: losses of padded logits.

The logits of several prompts stand in one tensor [prompt, token], float64, with padding at the end;
`lengths` [prompt] says how many of a row are real. Torch gives the gradient by the logits.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from demur.detectors._aggregations import Aggregation, Ema, Highest, Smoothing, Softmax


class TokenLoss(Protocol):
    """A loss of each prompt, by the logits of its tokens."""

    def __call__(self, logits: Tensor, lengths: Tensor, unsafe: Tensor) -> Tensor:
        """Return the losses [prompt].

        Args:
            logits: [prompt, token].
            lengths: Real tokens of each prompt, over 0.
            unsafe: [prompt], 1 for unsafe and 0 for safe.
        """


@dataclass(frozen=True)
class ScoreLoss:
    """The cross-entropy of a prompt's score, and for safe prompts how far its segments differ."""

    aggregation: Aggregation
    """Pools with `Softmax` or `Highest`."""
    spread_penalty: float = 0.0
    """Of the variance of a safe prompt's segments, each weighed by the softmax of them all."""
    temperature: float = 1.0
    """Of that softmax."""

    def __call__(self, logits: Tensor, lengths: Tensor, unsafe: Tensor) -> Tensor:
        """Return the losses [prompt]."""
        smoothing = self.aggregation.smoothing
        segments, is_segment = smoothed(logits, smoothing), counted(logits, lengths, smoothing)
        scores = pooled(segments, is_segment, self.aggregation.pool)
        losses = _cross_entropy(scores, unsafe)
        if self.spread_penalty:
            weights = _softmax(segments, is_segment, self.temperature)
            means = (weights * segments).sum(1, keepdim=True)
            spread = (weights * (segments - means) ** 2).sum(1)
            losses = losses + self.spread_penalty * (1 - unsafe) * spread
        return losses


@dataclass(frozen=True)
class SegmentLoss:
    """The cross-entropy of each segment, weighed by the softmax of the prompt's segments."""

    smoothing: Smoothing
    temperature: float
    """Of the softmax; a low one judges a prompt by its most harmful stretch alone."""

    def __call__(self, logits: Tensor, lengths: Tensor, unsafe: Tensor) -> Tensor:
        """Return the losses [prompt]."""
        segments = smoothed(logits, self.smoothing)
        weights = _softmax(segments, counted(logits, lengths, self.smoothing), self.temperature)
        return (weights * _cross_entropy(segments, unsafe[:, None].expand_as(segments))).sum(1)


def smoothed(logits: Tensor, smoothing: Smoothing) -> Tensor:
    """Return what `Smoothing.update` gives after each token, [prompt, token]."""
    num_tokens = logits.shape[1]
    ends = torch.arange(1, num_tokens + 1)
    if isinstance(smoothing, Ema):
        averages = [torch.zeros_like(logits[:, 0])]
        for end in range(1, num_tokens + 1):
            gain = 1 / end if end <= smoothing.warm_up else smoothing.gain
            averages.append(averages[-1] + gain * (logits[:, end - 1] - averages[-1]))
        return torch.stack(averages[1:], dim=1)
    sums = logits.cumsum(1)
    before = functional.pad(sums, (smoothing.size, 0))[:, :num_tokens]
    return (sums - before) / ends.clamp(max=smoothing.size)


def counted(logits: Tensor, lengths: Tensor, smoothing: Smoothing) -> Tensor:
    """Return where a segment ends that counts, [prompt, token]: a full one, or else the last."""
    ends = torch.arange(1, logits.shape[1] + 1)
    first = lengths.clamp(max=smoothing.warm_up)[:, None]
    return (ends >= first) & (ends <= lengths[:, None])


def pooled(segments: Tensor, is_segment: Tensor, pool: object) -> Tensor:
    """Return the scores [prompt] of segments [prompt, token]."""
    if isinstance(pool, Softmax):
        return (_softmax(segments, is_segment, pool.temperature) * segments).sum(1)
    assert isinstance(pool, Highest), "other pools are fitted in closed form"
    num_highest = min(pool.count, segments.shape[1])
    highest = segments.masked_fill(~is_segment, -torch.inf).topk(num_highest, dim=1).values
    is_there = highest > -torch.inf
    return highest.masked_fill(~is_there, 0).sum(1) / is_there.sum(1)


def _softmax(segments: Tensor, is_segment: Tensor, temperature: float) -> Tensor:
    return (segments / temperature).masked_fill(~is_segment, -torch.inf).softmax(1)


def _cross_entropy(logits: Tensor, unsafe: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, unsafe, reduction="none")
