"""Fits logistic regressions with scikit-learn: loaded for a fit, never to score."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression

from demur.core.protocols import Targets
from demur.core.readings import Array
from demur.detectors._states import mean_and_scale


def balanced_weights(targets: Targets, balance: str) -> Array:
    """Return a weight for each prompt, with mean 1.

    Args:
        targets: Labels and sources.
        balance: `none`, `labels` (both labels weigh the same), or `sources` (so do the sources
            within each label).
    """
    if balance == "none":
        return np.ones(len(targets))
    labels = targets.unsafe.astype(bool)
    parts = targets.source if balance == "sources" else np.zeros(len(targets), int)
    weights: Array = np.zeros(len(targets))
    for label in (False, True):
        of_label = parts[labels == label]
        names, counts = np.unique(of_label, return_counts=True)
        share = dict(zip(names.tolist(), 1 / (len(names) * counts), strict=True))
        weights[labels == label] = [share[name] for name in of_label.tolist()]
    weights *= len(targets) / weights.sum()
    return weights


def fit_standardised(
    states: Array, unsafe: Array, weights: Array, *, c: float, max_iterations: int
) -> tuple[Array, float]:
    """Fit to standardised states and fold the standardisation back.

    Args:
        states: [prompt, feature], float32.
        unsafe: [prompt], true for unsafe.
        weights: [prompt], mean 1.
        c: Inverse strength of the L2 penalty on the standardised weights.
        max_iterations: Most steps of the solver.

    Returns:
        Weights [feature] on raw states, float64, and the bias.
    """
    mean, scale = mean_and_scale(states)
    standardised = (states - mean) / scale  # float64: in float32 the solver stops too early
    model = LogisticRegression(C=c, max_iter=max_iterations, tol=1e-6)
    model.fit(standardised, unsafe.astype(bool), sample_weight=weights)
    folded = model.coef_[0].astype(np.float64) / scale
    return folded, float(model.intercept_[0] - folded @ mean)


def fit_sparse(
    features: Array, unsafe: Array, weights: Array, *, penalty: float
) -> tuple[Array, float]:
    """Fit a logistic regression with an L1 penalty on the coefficients, none on the intercept.

    A coefficient is the difference of two parts that are never negative, which makes the problem
    smooth; scikit-learn's own solvers either penalise the intercept or stop far from the optimum.

    Args:
        features: [prompt, feature], of like size.
        unsafe: [prompt], true for unsafe.
        weights: [prompt], mean 1.
        penalty: Of the sum of absolute coefficients, against the mean loss.

    Returns:
        The coefficients [feature] and the intercept.
    """
    signs, shares = np.where(unsafe, 1.0, -1.0), weights / len(weights)
    count = features.shape[1]

    def loss(parts: Array) -> tuple[float, Array]:
        margins = signs * (features @ (parts[:count] - parts[count:-1]) + parts[-1])
        slopes = -signs * shares * expit(-margins)
        of_features = features.T @ slopes
        gradient = np.concatenate([of_features + penalty, penalty - of_features, [slopes.sum()]])
        return float(-shares @ log_expit(margins) + penalty * parts[:-1].sum()), gradient

    found = minimize(
        loss,
        np.zeros(2 * count + 1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * count) + [(None, None)],
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000, "maxcor": 30},
    ).x
    return found[:count] - found[count:-1], float(found[-1])
