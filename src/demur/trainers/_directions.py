"""Directions towards unsafe prompts, one a layer: unit vectors from states of paired anchors."""

from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from demur.core.errors import DataError
from demur.core.readings import Array

Direction = Literal["difference", "pca", "head"]

MAX_ITERATIONS = 1000
"""Of the solver of a logistic regression."""


def directions(unsafe: Array, safe: Array, *, kind: Direction, c: float) -> Array:
    """Return a unit vector a layer, [layer, d_model], float64, from safe towards unsafe states.

    Args:
        unsafe: States [pair, layer, d_model].
        safe: Of the same shape, in the order of the pairs.
        kind: `difference` of the means; `pca`, the first principal component of the states about
            the middle of their pair, which is that of the differences about zero; `head`, the
            weights of a logistic regression on standardised states, for states as they are.
        c: Inverse strength of the penalty of `head`.

    Raises:
        DataError: The states of both labels are alike in a layer, or one is not finite.
    """
    unsafe, safe = unsafe.astype(np.float64), safe.astype(np.float64)
    if not (np.isfinite(unsafe).all() and np.isfinite(safe).all()):
        raise DataError("a captured state is not finite: check the model's dtype and weights")
    means: Array = (unsafe - safe).mean(0)  # [layer, d_model]
    if not means.any(1).all():
        raise DataError("unsafe and safe anchors have the same states in a layer: use other ones")
    found = means
    if kind != "difference":
        of_layers = zip(unsafe.swapaxes(0, 1), safe.swapaxes(0, 1), strict=True)
        found = np.stack(
            [_component(u - s) if kind == "pca" else _head(u, s, c=c) for u, s in of_layers]
        )
        found = found * np.where(np.vecdot(found, means) < 0, -1.0, 1.0)[:, None]
    directed: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
    return directed


def first_component(vectors: Array) -> Array:
    """Return the unit vector [d_model] that vectors [vector, d_model] have most in common.

    It is the first principal component about zero, and points where their sum does.
    """
    component = _component(vectors)
    return component if component @ vectors.sum(0) >= 0 else -component


def _component(vectors: Array) -> Array:
    component: Array = np.linalg.svd(vectors, full_matrices=False)[2][0]
    return component


def _head(unsafe: Array, safe: Array, *, c: float) -> Array:
    states = np.concatenate([unsafe, safe])
    labels = np.arange(len(states)) < len(unsafe)
    scale = states.std(0)
    scale[scale == 0] = np.inf  # a constant coordinate tells nothing
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=1e-6)
    model.fit((states - states.mean(0)) / scale, labels)
    weights: Array = model.coef_[0] / scale
    return weights
