"""The mean of two linear read-outs that are fitted in unlike ways, and so err in unlike ways.

One is a logistic regression on all states joined, as `linear` fits it; the other a Gaussian
prototype model (LPM) of the last layer alone. The scores of each are divided by their spread over
training prompts, sources weighing the same. A mean of linear read-outs is one itself: it costs
what `linear` costs.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1: the light supervised
detector; Training-Free LLM Moderation via Latent Prototypes (2025), v2, Eq. 3 and 4: the prototype
model.

Differs: the two are averaged; sources weigh the same in both; several layers and read-outs of the
prompt. Members, their shares, reads and penalty were chosen by holding out whole training sources.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined, unjoined
from demur.core.reads import CaptureSpec
from demur.detectors._moments import Moments, discriminant
from demur.detectors.linear import Linear

__all__ = ["LinearEnsemble"]


@dataclass
class LinearEnsemble(Linear):
    """The mean of a logistic regression and of a prototype model.

    Args:
        reads: Pooled captures; the prototypes are those of the last layer that the first one names.
    """

    logistic_share: float = 2 / 3
    """Weight of the logistic regression in the mean, 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not 0 <= self.logistic_share <= 1:
            raise ConfigError(f"logistic_share is {self.logistic_share}: expected 0 to 1")

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing: nothing is drawn.

        Raises:
            DataError: The readings and targets do not fit together, hold a NaN, or all states of
                each label are alike.
        """
        states = joined(readings, self.reads, num_prompts=len(targets))
        shares = self._shares(targets)
        regression = self._regression(states, targets.unsafe, shares)
        prototypes = _prototypes(states, self._last_layer(states), targets.unsafe, shares)
        weights, bias = np.zeros(states.shape[1]), 0.0
        for share, (of_member, member_bias) in (
            (self.logistic_share, regression),
            (1 - self.logistic_share, prototypes),
        ):
            spread = _spread(states @ of_member, shares)
            weights += share * of_member / spread
            bias += share * member_bias / spread
        self.readout_ = unjoined(weights, bias, self.reads)
        return self

    def _last_layer(self, states: Array) -> slice:
        """Return where the last layer of the first read lies among the joined states."""
        num_layers = [len(read.layers) for read in self.reads if isinstance(read, CaptureSpec)]
        size = states.shape[1] // sum(num_layers)
        return slice((num_layers[0] - 1) * size, num_layers[0] * size)


def _prototypes(states: Array, part: slice, unsafe: Array, shares: Array) -> tuple[Array, float]:
    """Fit prototypes on some features; return weights of all features, and the bias."""
    moments = Moments.zero(2, part.stop - part.start)
    moments.update(states[:, part], unsafe.astype(int), weights=shares)
    weights = np.zeros(states.shape[1])
    weights[part], bias = discriminant(moments)
    return weights, bias


def _spread(scores: Array, shares: Array) -> float:
    """Return the weighted standard deviation of scores; 1 where all are alike."""
    mean = np.average(scores, weights=shares)
    return float(np.sqrt(np.average(np.square(scores - mean), weights=shares))) or 1.0
