"""What methods do to states: standardise them, and multiply them with weights.

Products round alike whatever a prompt's neighbours are.
"""

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.readout import joined
from demur.core.reads import CaptureSpec, Read

ROWS_A_CHUNK = 1024


def mean_and_scale(states: Array) -> tuple[Array, Array]:
    """Return the mean and standard deviation [feature] of states [prompt, feature], float64."""
    mean = states.mean(0, dtype=np.float64)
    return mean, without_constants(mean, states.std(0, dtype=np.float64))


def without_constants(mean: Array, scale: Array) -> Array:
    """Return deviations in which that of a constant feature is infinite: it says nothing."""
    return np.where(scale < 1e-8 * np.abs(mean) + 1e-12, np.inf, scale)


def require_width(states: Array, num_features: int) -> None:
    """Refuse states [prompt, feature] of another number of features.

    Raises:
        DataError: They are.
    """
    if states.shape[1] != num_features:
        raise DataError(
            f"states have shape {states.shape}: expected [prompt, {num_features}], all reads and "
            "layers joined"
        )


def row_scores(states: Array, weights: Array) -> Array:
    """Return the products of each state with several weight vectors, [prompt, output], float64.

    Args:
        states: [prompt, feature].
        weights: [output, feature], float64.

    Raises:
        DataError: The numbers of features differ.
    """
    if states.shape[1] != weights.shape[1]:
        raise DataError(f"states have shape {states.shape}: expected [prompt, {weights.shape[1]}]")
    return _in_chunks(states[:, None], weights)


def levels(readings: Readings, reads: tuple[Read, ...]) -> Array:
    """Return the states of all layers of all pooled reads, [prompt, level, d_model]."""
    flat = joined(readings, reads, num_prompts=len(readings))
    count = sum(len(read.layers) for read in reads if isinstance(read, CaptureSpec))
    return flat.reshape(len(readings), count, -1)


def level_scores(states: Array, weights: Array) -> Array:
    """Return the product of each level with its own weights, [prompt, level], float64.

    Args:
        states: [prompt, level, d_model].
        weights: [level, d_model], float64.

    Raises:
        DataError: The shapes do not fit.
    """
    if states.shape[1:] != weights.shape:
        raise DataError(f"states have shape {states.shape}: expected [prompt, *{weights.shape}]")
    return _in_chunks(states, weights)


def _in_chunks(states: Array, weights: Array) -> Array:
    """Return one dot product a prompt and output, [prompt, output], float64."""
    scores: Array = np.empty((len(states), len(weights)))
    for start in range(0, len(states), ROWS_A_CHUNK):
        chunk = slice(start, start + ROWS_A_CHUNK)
        scores[chunk] = np.vecdot(states[chunk].astype(np.float64), weights)
    return scores
