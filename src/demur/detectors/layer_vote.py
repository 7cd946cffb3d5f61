"""Each layer votes: the mean of the layers' own posteriors, without any learning on top.

A Gaussian discriminant with a shared covariance is fitted to each layer by itself (see
`prototypes`); the score is the mean over layers of the probability of harm, or with `vote="hard"`
the share of layers that take the prompt for unsafe. A learned combination (`layered_prototypes`)
has to beat it.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025), arXiv 2502.16174 v2, the majority
vote over layers of its layer study.

Differs: the mean of posteriors is the default, since shares of layers have few values and cannot be
calibrated to a small false-positive rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError
from demur.core.protocols import Stream, StreamedDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors._layers import LayerDiscriminants, moments_of_levels, sigmoid
from demur.detectors._mergeable import require_fitted

__all__ = ["LayerVote"]

Vote = Literal["soft", "hard"]


@dataclass
class LayerVote(StreamedDetector):
    """The mean vote of one Gaussian discriminant a layer.

    Args:
        reads: Pooled captures; each of their layers votes.
    """

    vote: Vote = "soft"
    """`soft` averages probabilities, `hard` counts layers over one half."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.vote not in get_args(Vote):
            raise ConfigError(f"vote is {self.vote!r}: expected one of {get_args(Vote)}")
        self.layers_: LayerDiscriminants | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at all layers, or at `layers`."""
        return (CaptureSpec(layers or tuple(range(num_blocks))),)

    def fit_stream(self, parts: Stream, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; nothing is random.

        Raises:
            DataError: The parts and targets do not fit together, or hold a NaN.
        """
        one_fold = np.zeros(len(targets), int)
        (moments,) = moments_of_levels(parts, self.reads, targets.unsafe, one_fold, num_folds=1)
        self.layers_ = LayerDiscriminants.solved(moments)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the mean vote [prompt], 0 to 1."""
        require_fitted(self, self.layers_)
        assert self.layers_ is not None
        log_odds = self.layers_.log_odds(readings, self.reads)
        votes: Array = sigmoid(log_odds) if self.vote == "soft" else (log_odds > 0).astype(float)
        means: Array = votes.mean(1)
        return means

    def state(self) -> dict[str, Array]:
        """Return `weights` [level, d_model] and `biases` [level]."""
        require_fitted(self, self.layers_)
        assert self.layers_ is not None
        return self.layers_.arrays()

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        self.layers_ = LayerDiscriminants.from_arrays(state)
        return self
