"""Scores a prompt from all of its tokens' states, as an engine hands them out."""

from collections.abc import Sequence

import numpy as np

from demur.core.readings import Array
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt


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
        total += float((chosen[_tokens(spec, prompt)].mean(axis=0) * weights).sum())
    return total


def _tokens(spec: CaptureSpec, prompt: Prompt) -> list[int]:
    """Return the tokens that a read averages over."""
    if spec.positions in ("last", "all"):
        return list(range(len(prompt)))[-1 if spec.positions == "last" else 0 :]
    turns = prompt.spans_of("user")
    chosen = turns[-1:] if spec.positions == "user" else turns
    return [n for span in chosen for n in range(span.start, span.stop)]


def _normalised(states: Array, spec: CaptureSpec) -> Array:
    if spec.normalise == "none":
        return states
    found: Array = states / np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + 1e-12)
    return found
