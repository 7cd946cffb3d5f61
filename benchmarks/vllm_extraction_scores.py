"""Scores a prompt from all of its tokens' states, as an engine hands them out."""

from collections.abc import Sequence

import numpy as np

from demur.core.readings import Array
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.engines._columns import spans_of


def score(readout: LinearReadout, layers: Sequence[int], prompt: Prompt, states: Array) -> float:
    """Return a read-out's score.

    Args:
        readout: Reads the last token, or means over tokens.
        layers: 0-based blocks, in the order of the states.
        prompt: Was read.
        states: [token, layer, d_model], float64.
    """
    total = readout.bias
    for spec, weights in readout.weights.items():
        chosen = _normalised(states[:, [layers.index(layer) for layer in spec.layers]], spec)
        tokens = [n for start, stop in spans_of(spec, prompt) for n in range(start, stop)]
        total += float((chosen[tokens].mean(axis=0) * weights).sum())
    return total


def _normalised(states: Array, spec: CaptureSpec) -> Array:
    if spec.normalise == "none":
        return states
    found: Array = states / np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + 1e-12)
    return found
