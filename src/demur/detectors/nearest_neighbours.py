"""Nearest neighbours: how much closer a prompt is to known unsafe prompts than to known safe ones.

The training states are standardised, scaled to unit length and kept. A prompt's score is its mean
cosine similarity to the `k` most similar unsafe prompts minus that to the `k` most similar safe
ones. Nothing is assumed of the shape of either class; the price is size. On disk a training prompt
takes two bytes a feature (4,000 prompts of 576 features: 4.6 MB; 40,000 of 4,096: 330 MB), six in
memory, and every score reads them all. Whoever has the artifact has its training prompts' states.

Paper: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors (2022), arXiv
2204.06507: the distance of a unit-length state to its k-th neighbour among known inputs.

Differs: two labelled classes and the difference of their similarities, where the paper has one
class of known inputs; the mean over k neighbours in place of the k-th; hidden states of a chat
model, standardised first because a few coordinates of theirs would drown the others; float16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined
from demur.core.reads import CaptureSpec, middle_layer
from demur.detectors._states import mean_and_scale, require_width

__all__ = ["NearestNeighbours"]


@dataclass
class NearestNeighbours(Detector):
    """Similarity to the nearest unsafe prompts minus similarity to the nearest safe ones.

    Args:
        reads: Pooled captures; their states are joined.
    """

    k: int = 16
    """Neighbours of each label, over 0; a label with fewer prompts uses all of them."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        if self.k < 1:
            raise ConfigError(f"k is {self.k}: expected 1 or more")
        self.neighbours_: _Neighbours | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks)),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Keep labelled prompts and return self; nothing is random.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        states = joined(readings, self.reads, num_prompts=len(targets))
        unsafe = targets.unsafe.astype(bool)
        mean, scale = mean_and_scale(states)
        kept = np.empty(states.shape, np.float16)
        for number, row in enumerate(states):  # by row: no float64 copy of them all
            kept[number] = _unit((row - mean) / scale)
        self.neighbours_ = _Neighbours(
            {"mean": mean, "scale": scale, "unsafe": kept[unsafe], "safe": kept[~unsafe]}
        )
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the differences of mean cosine similarity [prompt], float64, from -2 to 2."""
        neighbours = self._fitted()
        states = joined(readings, self.reads, num_prompts=len(readings))
        return neighbours.score(states, k=self.k)

    def state(self) -> dict[str, Array]:
        """Return the arrays that `_Neighbours` names."""
        return {name: array.copy() for name, array in self._fitted().arrays.items()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over kept prompts and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        self.neighbours_ = _Neighbours({name: array.copy() for name, array in state.items()})
        return self

    def _fitted(self) -> "_Neighbours":
        if self.neighbours_ is None:
            raise NotFittedError("NearestNeighbours is not fitted: call fit or load_state")
        return self.neighbours_


class _Neighbours:
    """The kept prompts, checked once, and the score that follows from them.

    Args:
        arrays: `mean` and `scale` [feature], float64 (a scale of infinity silences a feature);
            `unsafe` and `safe` [prompt, feature], unit vectors, float16.

    Raises:
        DataError: An array is missing, has the wrong shape, or is not finite.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        expected = ["mean", "safe", "scale", "unsafe"]
        if sorted(arrays) != expected:
            raise DataError(f"the state holds {sorted(arrays)}: expected {expected}")
        num_features = arrays["mean"].size
        for name, array in arrays.items():
            is_kept = name in ("safe", "unsafe")
            shape = (*array.shape[:1], num_features) if is_kept else (num_features,)
            if array.shape != shape or not array.size:
                raise DataError(f"{name} has shape {array.shape}: expected {shape}, none of them 0")
            if not (array > 0 if name == "scale" else np.isfinite(array)).all():
                raise DataError(f"{name} is not finite and in range: fit the detector again")
        self.arrays = arrays
        # float32 is what products are fast in; it holds float16 exactly.
        self._unsafe, self._safe = (arrays[name].astype(np.float32) for name in ("unsafe", "safe"))

    def score(self, states: Array, *, k: int) -> Array:
        """Return the scores [prompt], float64.

        Args:
            states: [prompt, feature], finite.
            k: Neighbours of each label.

        Raises:
            DataError: The states have another number of features.
        """
        mean, scale = self.arrays["mean"], self.arrays["scale"]
        require_width(states, len(mean))
        scores = np.empty(len(states))
        # One prompt at a time: a matrix product would round a prompt's score differently with the
        # number of its neighbours.
        for number, row in enumerate(states):
            unit = _unit((row - mean) / scale).astype(np.float32)
            scores[number] = _nearest(self._unsafe @ unit, k) - _nearest(self._safe @ unit, k)
        return scores


def _unit(state: Array) -> Array:
    """Return a vector at unit length; one of zeros stays as it is."""
    length = np.linalg.norm(state)
    scaled: Array = state / length if length > 0 else state
    return scaled


def _nearest(similarities: Array, k: int) -> float:
    """Return the mean of the `k` largest, or of all if there are fewer."""
    count = min(k, len(similarities))
    largest = np.partition(similarities, len(similarities) - count)[-count:]
    # Sorted, so that the sum does not depend on where in the file the prompts stand.
    return float(np.sort(largest).mean(dtype=np.float64))
