"""One Gaussian discriminant a layer, as the multi-layer prototype methods share it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import DataError
from demur.core.protocols import Stream
from demur.core.readings import Array, Readings
from demur.core.reads import Read
from demur.detectors._moments import Moments, all_of, discriminant
from demur.detectors._states import level_scores, levels


@dataclass(frozen=True)
class LayerDiscriminants:
    """Log-odds of harm that each level (a layer of a read) gives by itself."""

    weights: Array
    """[level, d_model], float64."""
    biases: Array
    """[level]."""

    def log_odds(self, readings: Readings, reads: tuple[Read, ...]) -> Array:
        """Return the log-odds [prompt, level].

        Raises:
            DataError: A state is not finite, or its shape does not fit.
        """
        return level_scores(levels(readings, reads), self.weights) + self.biases

    @classmethod
    def solved(cls, moments: list[Moments]) -> Self:
        """Return the discriminants of the moments of each level.

        Raises:
            DataError: A class is empty, or all states of a class are alike.
        """
        weights, biases = zip(*(discriminant(of_level) for of_level in moments), strict=True)
        return cls(np.stack(weights), np.array(biases))

    def arrays(self) -> dict[str, Array]:
        """Return `weights` and `biases`."""
        return {"weights": self.weights, "biases": self.biases}

    @classmethod
    def from_arrays(cls, state: Mapping[str, Array]) -> Self:
        """Take over what `arrays` returned.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        try:
            found = cls(state["weights"], state["biases"])
        except KeyError as error:
            raise DataError(f"the state holds {sorted(state)}: {error} is missing") from error
        if found.weights.ndim != 2 or found.biases.shape != found.weights.shape[:1]:
            raise DataError(
                f"weights have shape {found.weights.shape}, biases {found.biases.shape}: expected "
                "[level, d_model] and [level]"
            )
        return found


def moments_of_levels(
    parts: Stream, reads: tuple[Read, ...], unsafe: Array, fold: Array, *, num_folds: int
) -> list[list[Moments]]:
    """Return the moments of each level of each fold: `[fold][level]`.

    Args:
        parts: Readings with their rows.
        reads: Pooled captures.
        unsafe: [prompt].
        fold: [prompt], whole numbers from 0.
        num_folds: How many there are.

    Raises:
        DataError: The parts do not hold each prompt once, or a NaN.
    """
    found: list[list[Moments]] = [[] for _ in range(num_folds)]
    for rows, readings in all_of(parts, len(unsafe)):
        states = levels(readings, reads)
        _, num_levels, d_model = states.shape
        for number, of_fold in enumerate(found):
            if not of_fold:
                of_fold.extend(Moments.zero(2, d_model) for _ in range(num_levels))
            chosen = fold[rows] == number
            for level, moments in enumerate(of_fold):
                moments.update(states[chosen, level], unsafe[rows][chosen].astype(int))
    return found


def folds_of(group: Array, *, num_folds: int, seed: int) -> Array:
    """Return a fold [prompt] for each prompt; prompts of one group share it.

    Args:
        group: [prompt].
        num_folds: 2 or more; fewer groups make fewer folds.
        seed: Of the draw.
    """
    names, places = np.unique(group, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(names)) % num_folds
    folds: Array = drawn[places]
    return folds


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    odds: Array = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + odds), odds / (1 + odds))
