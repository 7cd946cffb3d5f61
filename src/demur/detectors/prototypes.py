"""LPM: one Gaussian prototype a class with a shared covariance; fitted in closed form.

Class means mu_c and the pooled within-class scatter S are streamed in float64. The precision is the
empirical Bayes ridge P = d [(n - 1) S + tr(S) I]^-1, which needs no tuning, and the score is the
difference of the two log-posteriors under equal priors: linear, w = P (mu_1 - mu_0),
b = -(mu_1 + mu_0)' P (mu_1 - mu_0) / 2.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025), arXiv 2502.16174 v2, Eq. 3 and 4.

Differs: the system is solved by Cholesky in float64, never inverted; the default layer is in the
middle of the model, where the paper's own layer study is best, rather than the last; several reads
or layers are joined into one vector; the threshold is calibrated instead of fixed at 0.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import DataError
from demur.core.protocols import LinearDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined, unjoined
from demur.core.reads import CaptureSpec
from demur.detectors._moments import Moments

__all__ = ["Prototypes"]


@dataclass
class Prototypes(LinearDetector):
    """Latent prototypes: a Gaussian discriminant with shared covariance.

    Args:
        reads: Pooled captures; their states are joined.
    """

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or (min(num_blocks // 2 + 1, num_blocks - 1),)),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; nothing is random.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        states = joined(readings, self.reads, num_prompts=len(targets))
        moments = Moments.zero(2, states.shape[1])
        moments.update(states, targets.unsafe.astype(int))
        weights, bias = discriminant(moments)
        self.readout_ = unjoined(weights, bias, readings, self.reads)
        return self


def discriminant(moments: Moments) -> tuple[Array, float]:
    """Return the weights [feature] and the bias of the difference of log-posteriors.

    Args:
        moments: Of two classes, safe first.

    Raises:
        DataError: A class is empty, or all states of each class are alike.
    """
    safe, unsafe = moments.means
    num_features, num_prompts = len(safe), moments.counts.sum()
    within = moments.within
    spread, size = np.trace(within), np.trace(moments.products)
    if not spread > 1e-12 * size:  # less than that is what rounding leaves of equal states
        raise DataError("all states of a class are alike: there is no spread to learn from")
    within[np.diag_indices_from(within)] += spread / (num_prompts - 1)
    factor = np.linalg.cholesky(within)
    half = np.linalg.solve(factor, unsafe - safe)
    weights: Array = num_features * np.linalg.solve(factor.T, half)
    return weights, float(-0.5 * (safe + unsafe) @ weights)
