"""A fitted perceptron with one hidden layer: its arrays, and the score that follows from them."""

from collections.abc import Mapping

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.detectors._states import require_width


class Network:
    """The fitted arrays, checked once.

    Args:
        arrays: `mean` and `scale` [feature], float64 (a scale of infinity silences a feature);
            `hidden_weights` [feature, unit], `hidden_bias` [unit], `score_weights` [unit] and
            `score_bias` [1], float32.
        hidden: Units of the hidden layer.

    Raises:
        DataError: An array is missing, has the wrong shape, or is not finite.
    """

    def __init__(self, arrays: Mapping[str, Array], *, hidden: int) -> None:
        num_features = arrays["mean"].size if "mean" in arrays else 0
        shapes: dict[str, tuple[int, ...]] = {
            "mean": (num_features,),
            "scale": (num_features,),
            "hidden_weights": (num_features, hidden),
            "hidden_bias": (hidden,),
            "score_weights": (hidden,),
            "score_bias": (1,),
        }
        if set(arrays) != set(shapes):
            raise DataError(f"the state holds {sorted(arrays)}: expected {sorted(shapes)}")
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise DataError(f"{name} has shape {arrays[name].shape}: expected {shape}")
            is_sound = arrays[name] > 0 if name == "scale" else np.isfinite(arrays[name])
            if not is_sound.all():
                raise DataError(f"{name} is not finite and in range: fit the detector again")
        self.arrays = arrays
        # Converted once, not per request.
        self._hidden_weights = arrays["hidden_weights"].astype(np.float64)
        self._score_weights = arrays["score_weights"].astype(np.float64)

    def score(self, states: Array) -> Array:
        """Return the logits [prompt], float64.

        Args:
            states: [prompt, feature], finite.

        Raises:
            DataError: The states have another number of features.
        """
        mean, scale = self.arrays["mean"], self.arrays["scale"]
        require_width(states, len(mean))
        scores = np.empty(len(states))
        # One prompt at a time: a matrix product would round a prompt's score differently with the
        # number of its neighbours.
        for number, row in enumerate(states):
            inner = ((row - mean) / scale) @ self._hidden_weights + self.arrays["hidden_bias"]
            scores[number] = np.maximum(inner, 0) @ self._score_weights
        return scores + float(self.arrays["score_bias"][0])
