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

from collections.abc import Sequence
from dataclasses import dataclass

from demur.core.errors import DataError
from demur.core.linear import LinearDetector
from demur.core.protocols import Targets
from demur.core.readings import Array
from demur.core.readout import unjoined
from demur.core.reads import CaptureSpec, middle_layer
from demur.detectors._mergeable import MergeableDetector
from demur.detectors._moments import Moments, discriminant

__all__ = ["Prototypes"]


@dataclass
class Prototypes(MergeableDetector, LinearDetector):
    """Latent prototypes: a Gaussian discriminant with shared covariance.

    Args:
        reads: Pooled captures; their states are joined.
    """

    def __post_init__(self) -> None:
        """Begin without a fit."""
        MergeableDetector.__post_init__(self)
        LinearDetector.__post_init__(self)

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks)),)

    def _classes(self, targets: Targets) -> tuple[Sequence[str], Array]:
        return ("safe", "unsafe"), targets.unsafe.astype(int)

    def _solve(self, moments: Moments, names: Sequence[str]) -> None:
        if tuple(names) != ("safe", "unsafe"):
            raise DataError(f"only {list(names)} prompts are left: both labels are needed")
        weights, bias = discriminant(moments)
        self.readout_ = unjoined(weights, bias, self.reads)
