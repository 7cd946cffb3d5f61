"""Logistic regression on hidden states: standardised, several layers and read-outs joined.

The states of all reads are joined into one vector a prompt and standardised; the fitted weights are
folded back, so that what is stored and served is a plain linear read-out of the raw states. With
`balance="sources"` each label, and within a label each source, weighs the same: a detector that
fits a few large sets too closely takes other benign prompts for unsafe.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1: a light supervised
detector on the hidden state of the last prompt token, which routes a request.

Differs: logistic regression in place of the paper's MLP and Transformer detectors; several layers
are read, rather than the last one, at the last token and as the mean over the user's tokens; the
penalty is strong on purpose. All three were chosen by holding out whole training sources.
"""

from dataclasses import dataclass
from typing import Self

from demur.core.errors import ConfigError
from demur.core.linear import LinearDetector
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined, unjoined
from demur.core.reads import CaptureSpec, spread_layers
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance

__all__ = ["Linear"]


@dataclass
class Linear(LinearDetector):
    """Logistic regression on standardised hidden states.

    Args:
        reads: Pooled captures; their states are joined.
    """

    c: float = 1e-3
    """Inverse strength of the L2 penalty, as scikit-learn's `C`, over 0. Small on purpose."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""
    max_iterations: int = 1000
    """Most steps of the solver, over 0."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not self.c > 0:
            raise ConfigError(f"c is {self.c}: expected more than 0")
        require_balance(self.balance)
        if self.max_iterations < 1:
            raise ConfigError(f"max_iterations is {self.max_iterations}: expected 1 or more")

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token and the mean over the user's tokens, at ten layers or `layers`.

        The ten are spread over the model from a third of its depth on.
        """
        chosen = layers or spread_layers(num_blocks, start=1 / 3, count=10)
        return (CaptureSpec(chosen), CaptureSpec(chosen, "user", normalise="rms", pool="mean"))

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing, the problem is convex.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        states = joined(readings, self.reads, num_prompts=len(targets))
        weights, bias = self._regression(states, targets.unsafe, self._shares(targets))
        self.readout_ = unjoined(weights, bias, self.reads)
        return self

    def _shares(self, targets: Targets) -> Array:
        """Return how much each prompt weighs, [prompt], with mean 1."""
        # scikit-learn is loaded for a fit only: scoring needs NumPy.
        logistic = import_named("demur.detectors._logistic")
        shares: Array = logistic.balanced_weights(targets, self.balance)
        return shares

    def _regression(self, states: Array, unsafe: Array, shares: Array) -> tuple[Array, float]:
        """Fit the logistic regression; return its weights [feature] on raw states, and the bias."""
        found: tuple[Array, float] = import_named("demur.detectors._logistic").fit_standardised(
            states, unsafe, shares, c=self.c, max_iterations=self.max_iterations
        )
        return found
