"""Dot products of states and weights that round alike whatever a prompt's neighbours are."""

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.readout import joined
from demur.core.reads import CaptureSpec, Read


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
    # One product a prompt: a matrix product would round it differently with other neighbours.
    rows = [weights @ row.astype(np.float64) for row in states]
    return np.array(rows).reshape(len(states), len(weights))


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
    rows = [np.einsum("ld,ld->l", row.astype(np.float64), weights) for row in states]
    return np.array(rows).reshape(len(states), len(weights))
