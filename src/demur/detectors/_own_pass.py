"""What detectors share that ask a model about the chat in a pass of its own.

The score is the log-odds of the unsafe answer against the safe one. `fit` only moves and scales it
so that 0 is even odds (Platt), on a few prompts drawn from all: no other prompt is read by a fit. A
model that answers the wrong way round is turned by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import ReadyDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import OwnPass
from demur.core.registry import import_named

C = 1.0
"""Inverse strength of the penalty on the slope of standardised log-odds."""


@dataclass
class OwnPassDetector(ReadyDetector):
    """A detector whose score is the log-odds of two answers: the first label against the second.

    Args:
        reads: They follow from the fields, and are set by them.
    """

    num_calibrated: int = field(default=200, kw_only=True)
    """Training prompts that a fit asks about, half of each label; 0 asks about none, and the score
    is the model's own log-odds."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        if self.num_calibrated < 0:
            raise ConfigError(f"num_calibrated is {self.num_calibrated}: expected 0 or more")
        self.slope_: float | None = None
        self.bias_: float = 0.0

    def ready(self) -> Self:
        """Take the model's own log-odds for scores, and return self."""
        self.slope_, self.bias_ = 1.0, 0.0
        return self

    def log_odds(self, readings: Readings) -> Array:
        """Return the log-odds [prompt] of the likeliest unsafe answer among the reads."""
        asked = [read for read in self.reads if isinstance(read, OwnPass)]
        odds = [readings.log_probabilities(read) for read in asked]
        highest: Array = np.max([values[:, 0] - values[:, 1] for values in odds], axis=0)
        return highest

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Scale the log-odds to a few labelled prompts, and return self.

        Raises:
            DataError: The readings and targets do not fit together, or a value is not finite.
        """
        if len(readings) != len(targets):
            raise DataError(
                f"the readings hold {len(readings)} prompts, the targets {len(targets)}"
            )
        self.ready()
        rows = _drawn(targets, self.num_calibrated, seed=seed)
        if not rows.size:
            return self
        unsafe = targets.unsafe[rows].astype(bool)
        # Both labels weigh the same, however many there are of each.
        weights = np.where(unsafe, 0.5 / unsafe.mean(), 0.5 / (~unsafe).mean())
        odds = self.log_odds(readings.take(rows))[:, None]
        logistic = import_named("demur.detectors._logistic")
        slope, self.bias_ = logistic.fit_standardised(
            odds, unsafe, weights, c=C, max_iterations=1000
        )
        self.slope_ = float(slope[0])
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64: log-odds, as they were scaled."""
        if self.slope_ is None:
            raise self._not_fitted()
        scores: Array = self.slope_ * self.log_odds(readings) + self.bias_
        return scores

    def state(self) -> dict[str, Array]:
        """Return `slope` [1] and `bias` [1]."""
        if self.slope_ is None:
            raise self._not_fitted()
        return {"slope": np.array([self.slope_]), "bias": np.array([self.bias_])}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a scaling and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        if set(state) != {"slope", "bias"} or any(array.size != 1 for array in state.values()):
            shapes = {name: array.shape for name, array in state.items()}
            raise DataError(f"the state holds {shapes}: expected slope and bias, of one value each")
        self.slope_, self.bias_ = float(state["slope"].item()), float(state["bias"].item())
        return self

    def _not_fitted(self) -> NotFittedError:
        return NotFittedError(f"{type(self).__name__} is not fitted: call fit or load_state")


def _drawn(targets: Targets, number: int, *, seed: int) -> Array:
    """Return the rows of some prompts, half of each label where there are enough, in order."""
    generator = np.random.default_rng(seed)
    unsafe = targets.unsafe.astype(bool)
    rows = [
        generator.permutation(np.flatnonzero(unsafe == label))[: number // 2]
        for label in (False, True)
    ]
    drawn: Array = np.sort(np.concatenate(rows))
    return drawn
