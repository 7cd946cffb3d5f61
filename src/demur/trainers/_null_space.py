"""Gates that let benign states be: directions in the null space of what they have in common.

A gate g weighs a vector by its product with the state. It is the part of the unsafe anchors' mean
state that lies outside the span of the benign states, scaled so that this mean gets the vector
once. The span is a truncated one: the right singular vectors of benign states, each at unit length,
that hold a stated share of them. Vectors that were added at the layers before are part of a state
at the next one; the gate there is smaller by what it would see of them, so that the mean unsafe
state gets each vector once.

Paper: AlphaSteer (2025), arXiv 2506.07022: Delta = (a map to the refusal direction) times (the
projector on the null space of benign states).

Differs: one gate and one vector a layer, a matrix of rank one, in place of a ridge regression to a
full matrix, so that what is stored and computed is two vectors a layer; the span holds the states
of all tokens that are steered, those of benign replies too, each at unit length, since a few tokens
have states of a hundred times the size of others.
"""

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array

LEAST_SHARE = 1e-4
"""Of the unsafe mean's length that must lie outside the span: less is rounding."""


def gates(benign: Array, unsafe: Array, vectors: Array, *, preserve: float) -> Array:
    """Return a gate a layer, [layer, d_model], float64.

    Args:
        benign: States [state, layer, d_model], of all tokens that would be steered.
        unsafe: States [prompt, layer, d_model].
        vectors: [layer, d_model], which the gates weigh.
        preserve: Share of the benign states' squared length, each at unit length, that the span
            holds, over 0 to 1.

    Raises:
        DataError: Nothing of the unsafe states lies outside the span.
    """
    means = unsafe.astype(np.float64).mean(0)
    found = np.stack(
        [
            _gate(benign[:, layer].astype(np.float64), mean, preserve=preserve)
            for layer, mean in enumerate(means)
        ]
    )
    before = np.cumsum(vectors, axis=0) - vectors  # what a state has from the layers before
    seen = np.vecdot(found, before)
    scaled: Array = found / (1 + np.maximum(seen, 0.0))[:, None]
    return scaled


def _gate(benign: Array, unsafe: Array, *, preserve: float) -> Array:
    span = _span(benign, preserve)  # [component, d_model]
    outside = unsafe - span.T @ (span @ unsafe)
    if np.linalg.norm(outside) < LEAST_SHARE * np.linalg.norm(unsafe):
        raise DataError(
            f"the benign states of a layer leave nothing of the unsafe ones: with preserve="
            f"{preserve} they span {len(span)} of {len(unsafe)} dimensions; preserve less"
        )
    gate: Array = outside / (outside @ outside)
    return gate


def _span(states: Array, share: float) -> Array:
    """Return the right singular vectors [component, d_model] that hold a share of the states."""
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(states / np.where(lengths > 0, lengths, 1.0), False)
    held = np.cumsum(np.square(values)) / np.square(values).sum()
    count = int(np.searchsorted(held, share * (1 - 1e-12))) + 1
    return vectors[:count]
