"""MLPM: one Gaussian prototype model a layer, combined by a sparse logistic regression.

Each layer's own discriminant (see `prototypes`) gives a probability of harm; a logistic regression
with an L1 penalty weighs these probabilities, and leaves out the layers that add nothing. The
probabilities that it learns from are cross-fitted: each prompt is judged by discriminants that were
solved without its fold, and prompts of one group share a fold.

Paper: Efficient LLM Moderation with Multi-Layer Latent Prototypes (2026), arXiv 2502.16174 v3.

Differs: probabilities are cross-fitted, while the released code takes those of the very prompts
that the discriminants were fitted on; the intercept is not penalised; the penalty is stated against
the mean loss, so that it means the same for any number of prompts (the paper's C = 0.01 on 86,759
prompts is a penalty of 0.00115); the threshold is calibrated instead of fixed at one half.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Stream, StreamedDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance
from demur.detectors._layers import LayerDiscriminants, folds_of, moments_of_levels, sigmoid
from demur.detectors._mergeable import require_fitted
from demur.detectors._moments import Moments, total

__all__ = ["LayeredPrototypes"]


@dataclass
class LayeredPrototypes(StreamedDetector):
    """Multi-layer prototypes with an L1 combination.

    Args:
        reads: Pooled captures; each of their layers has a discriminant.
    """

    penalty: float = 1.15e-3
    """Weight of the sum of absolute coefficients against the mean loss, over 0; the paper's."""
    num_folds: int = 5
    """Parts of the cross-fit, 2 or more."""
    balance: Balance = "none"
    """What weighs the same in the combination: sources of each label, labels, or prompts."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.penalty > 0:
            raise ConfigError(f"penalty is {self.penalty}: expected more than 0")
        if self.num_folds < 2:
            raise ConfigError(f"num_folds is {self.num_folds}: expected 2 or more")
        require_balance(self.balance)
        self.layers_: LayerDiscriminants | None = None
        self.coefficients_: Array = np.zeros(0)
        self.intercept_ = 0.0

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at all layers, or at `layers`."""
        return (CaptureSpec(layers or tuple(range(num_blocks))),)

    def fit_stream(self, parts: Stream, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` draws the folds.

        Raises:
            DataError: The parts and targets do not fit together, hold a NaN, or there are too few
                groups to part them.
        """
        unsafe = targets.unsafe.astype(bool)
        fold = folds_of(targets.group, num_folds=self.num_folds, seed=seed)
        moments = moments_of_levels(parts, self.reads, unsafe, fold, num_folds=self.num_folds)
        overall = [total(of_level) for of_level in zip(*moments, strict=True)]
        layers = LayerDiscriminants.solved(overall)
        held_out = [_left_out(overall, of_fold) for of_fold in moments]
        posteriors: Array = np.zeros((len(targets), len(overall)))
        for rows, readings in parts:
            for number, others in enumerate(held_out):
                chosen = np.flatnonzero(fold[rows] == number)
                if len(chosen):
                    log_odds = others.log_odds(readings.take(chosen), self.reads)
                    posteriors[rows[chosen]] = sigmoid(log_odds)
        logistic = import_named("demur.detectors._logistic")
        weights = logistic.balanced_weights(targets, self.balance)
        self.coefficients_, self.intercept_ = logistic.fit_sparse(
            posteriors, unsafe, weights, penalty=self.penalty
        )
        self.layers_ = layers
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the combined log-odds of harm [prompt]."""
        require_fitted(self, self.layers_)
        assert self.layers_ is not None
        posteriors = sigmoid(self.layers_.log_odds(readings, self.reads))
        scores: Array = np.vecdot(posteriors, self.coefficients_) + self.intercept_
        return scores

    def state(self) -> dict[str, Array]:
        """Return `weights` [level, d_model], `biases`, `coefficients` and `intercept` [1]."""
        require_fitted(self, self.layers_)
        assert self.layers_ is not None
        return {
            **self.layers_.arrays(),
            "coefficients": self.coefficients_,
            "intercept": np.array([self.intercept_]),
        }

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        layers = LayerDiscriminants.from_arrays(state)
        try:
            coefficients, intercept = state["coefficients"], float(state["intercept"].item())
        except (KeyError, ValueError) as error:
            raise DataError(f"the state holds {sorted(state)}: {error} is missing") from error
        if coefficients.shape != layers.biases.shape:
            raise DataError(
                f"there are {len(coefficients)} coefficients for {len(layers.biases)} levels"
            )
        self.layers_, self.coefficients_, self.intercept_ = layers, coefficients, intercept
        return self


def _left_out(overall: list[Moments], fold: list[Moments]) -> LayerDiscriminants:
    """Return the discriminants without a fold, with posteriors as sharp as those of all prompts.

    The prototypes' precision grows with d / (n - 1): fewer prompts alone would sharpen it.

    Raises:
        DataError: Without the fold a label is missing.
    """
    others = [all_of_it.without(part) for all_of_it, part in zip(overall, fold, strict=True)]
    if not others[0].counts.all():
        raise DataError(
            "a label has too few groups to part them into folds: give more groups, or fewer folds"
        )
    solved = LayerDiscriminants.solved(others)
    sharpness = (others[0].counts.sum() - 1) / (overall[0].counts.sum() - 1)
    return LayerDiscriminants(solved.weights * sharpness, solved.biases * sharpness)
