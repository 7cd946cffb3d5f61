"""A perceptron with one hidden layer on hidden states: standardised, several reads joined.

The states of all reads are joined into one vector a prompt and standardised; a layer of rectified
units and one logit follow. scikit-learn fits it with Adam for a fixed number of epochs. Its early
stopping is never used: it holds out single prompts, and so would part groups. Scoring needs NumPy
alone.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1: the MLP detector on the
hidden state of the last prompt token.

Differs: the paper's code is not released, and its size, optimiser and epochs are not known to us:
one layer of 256 rectified units, Adam with lr 1e-3, 20 epochs in batches of 64 and the L2 penalty
are ours. A layer in the middle of the model is read rather than the last; states are standardised;
labels and sources are balanced; the threshold is calibrated instead of fixed at 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from demur.core.errors import ConfigError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined
from demur.core.reads import CaptureSpec, middle_layer
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance
from demur.detectors._network import Network

__all__ = ["Mlp"]


@dataclass
class Mlp(Detector):
    """One hidden layer of rectified units on standardised hidden states.

    Args:
        reads: Pooled captures; their states are joined.
    """

    hidden: int = 256
    """Units of the hidden layer, over 0; the paper's number is not known."""
    alpha: float = 1e-2
    """Strength of the L2 penalty, as scikit-learn's `alpha`, 0 or more."""
    epochs: int = 20
    """Passes over the training prompts, over 0; there is no early stopping."""
    lr: float = 1e-3
    """Step size of Adam, over 0."""
    batch_size: int = 64
    """Prompts a step, over 0; never more than there are."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        for name in ("hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if not self.alpha >= 0:
            raise ConfigError(f"alpha is {self.alpha}: expected 0 or more")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}: expected more than 0")
        require_balance(self.balance)
        self.network_: Network | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks)),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self.

        Args:
            readings: That hold the reads.
            targets: Of the same prompts.
            seed: Of the first weights and of the order of the prompts.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        states = joined(readings, self.reads, num_prompts=len(targets))
        # scikit-learn is loaded for a fit only: scoring needs NumPy.
        fitting = import_named("demur.detectors._mlp_fit")
        arrays = fitting.fit_standardised(
            states,
            targets,
            balance=self.balance,
            hidden=self.hidden,
            alpha=self.alpha,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=seed,
        )
        self.network_ = Network(arrays, hidden=self.hidden)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the logits [prompt], float64."""
        network = self._fitted()
        return network.score(joined(readings, self.reads, num_prompts=len(readings)))

    def state(self) -> dict[str, Array]:
        """Return the arrays that `Network` names."""
        return {name: array.copy() for name, array in self._fitted().arrays.items()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a fitted network and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        arrays = {name: array.copy() for name, array in state.items()}
        self.network_ = Network(arrays, hidden=self.hidden)
        return self

    def _fitted(self) -> "Network":
        if self.network_ is None:
            raise NotFittedError("Mlp is not fitted: call fit or load_state")
        return self.network_
