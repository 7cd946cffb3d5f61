"""Fits a perceptron with scikit-learn: loaded for a fit, never to score."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from demur.core.protocols import Targets
from demur.core.readings import Array
from demur.detectors._logistic import balanced_weights
from demur.detectors._states import mean_and_scale


def fit_standardised(
    states: Array,
    targets: Targets,
    *,
    balance: str,
    hidden: int,
    alpha: float,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> dict[str, Array]:
    """Fit to standardised states for a fixed number of epochs.

    Args:
        states: [prompt, feature].
        targets: Of the same prompts.
        balance: As in `balanced_weights`.
        hidden: Units of the hidden layer.
        alpha: Strength of the L2 penalty.
        epochs: Passes over the prompts.
        lr: Step size of Adam.
        batch_size: Prompts a step; never more than there are.
        seed: Of the first weights and of the order of the prompts.

    Returns:
        The arrays of a fitted network, as `demur.detectors.mlp` scores it: `mean` and `scale`
        [feature], float64; `hidden_weights` [feature, unit], `hidden_bias` [unit],
        `score_weights` [unit] and `score_bias` [1], float32.
    """
    mean, scale = mean_and_scale(states)
    # Adam's steps need no float64, and weights of float32 are stored without rounding.
    standardised = ((states - mean) / scale).astype(np.float32)
    model = MLPClassifier(
        (hidden,),
        alpha=alpha,
        batch_size=min(batch_size, len(states)),
        learning_rate_init=lr,
        max_iter=epochs,
        n_iter_no_change=epochs,  # so that a loss that no longer falls ends nothing
        random_state=seed,
    )
    with warnings.catch_warnings():
        # That the epochs are used up is what was asked for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(
            standardised,
            targets.unsafe.astype(bool),
            sample_weight=balanced_weights(targets, balance),
        )
    (hidden_weights, score_weights), (hidden_bias, score_bias) = model.coefs_, model.intercepts_
    return {
        "mean": mean,
        "scale": scale,
        "hidden_weights": hidden_weights.astype(np.float32),
        "hidden_bias": hidden_bias.astype(np.float32),
        "score_weights": score_weights[:, 0].astype(np.float32),
        "score_bias": score_bias.astype(np.float32),
    }
