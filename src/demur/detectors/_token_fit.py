"""Fits linear detectors over tokens: loaded for a fit, never to score.

The mean and the last token give one state a prompt, and so a logistic regression. Any other
aggregation is minimised from there by L-BFGS, over all prompts at each step, a batch after another:
no second copy of the states is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from demur.core.readings import Array
from demur.detectors._aggregations import Last, Pool
from demur.detectors._logistic import fit_standardised
from demur.detectors._token_losses import TokenLoss
from demur.detectors._tokens import moments, standardised


@dataclass(frozen=True)
class Problem:
    """Prompts to fit to."""

    prompts: Sequence[Array]
    """Token states of each, [layer, position, d_model]."""
    unsafe: Array
    """[prompt], true for unsafe."""
    weights: Array
    """[prompt], mean 1."""
    c: float
    """Inverse strength of the L2 penalty on the standardised weights, as scikit-learn's `C`."""
    max_iterations: int
    """Most steps of the solver."""


def fit_pooled(problem: Problem, pool: Pool) -> tuple[Array, float]:
    """Fit a logistic regression to the mean of each prompt's states, or to its last one.

    Returns:
        Weights [feature] on raw states, float64, and the bias.
    """
    if isinstance(pool, Last):
        states = [prompt[:, -1].reshape(-1) for prompt in problem.prompts]
    else:
        states = [prompt.mean(1, dtype=np.float64).reshape(-1) for prompt in problem.prompts]
    return fit_standardised(
        np.stack(states).astype(np.float32),
        problem.unsafe,
        problem.weights,
        c=problem.c,
        max_iterations=problem.max_iterations,
    )


def fit_tokens(
    problem: Problem, loss: TokenLoss, *, start: tuple[Array, float], batch_size: int
) -> tuple[Array, float]:
    """Minimise the weighted mean loss with an L2 penalty on the standardised weights.

    Args:
        problem: Prompts, penalty and steps.
        loss: Of each prompt.
        start: Weights [feature] on raw states and the bias to begin with.
        batch_size: Prompts whose standardised states are in memory at once.

    Returns:
        Weights [feature] on raw states, float64, and the bias.
    """
    mean, scale = (array.reshape(-1) for array in moments(problem.prompts))
    objective = Objective(problem, loss, mean=mean, scale=scale, batch_size=batch_size)
    weights, bias = start
    begin = np.where(np.isinf(scale), 0, weights) * np.where(np.isinf(scale), 0, scale)
    found = minimize(
        objective,
        np.append(begin, bias + weights @ mean),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": problem.max_iterations, "ftol": 1e-7, "gtol": 1e-6},
    ).x
    folded = found[:-1] / scale
    return folded, float(found[-1] - folded @ mean)


@dataclass(frozen=True)
class Objective:
    """What is minimised: a value and its gradient by weights and bias, [feature + 1], float64."""

    problem: Problem
    loss: TokenLoss
    mean: Array
    """[feature]."""
    scale: Array
    """[feature]; infinity silences a feature."""
    batch_size: int

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        """Return the value and the gradient."""
        weights, count = parameters[:-1], len(self.problem.prompts)
        strength = 1 / (self.problem.c * count)
        value, gradient = strength / 2 * float(weights @ weights), np.append(strength * weights, 0)
        for first in range(0, count, self.batch_size):
            rows = slice(first, first + self.batch_size)
            of_batch, slopes = self._batch(rows, parameters)
            value += of_batch / count
            gradient += slopes / count
        return value, gradient

    def _batch(self, rows: slice, parameters: Array) -> tuple[float, Array]:
        """Return the weighted sum of the losses of some prompts, and its gradient."""
        prompts = self.problem.prompts[rows]
        tokens = standardised(prompts, self.mean, self.scale)  # [token of all prompts, feature]
        logits = tokens @ parameters[:-1].astype(np.float32) + parameters[-1]
        lengths = torch.tensor([prompt.shape[1] for prompt in prompts])
        is_token = torch.arange(int(lengths.max())) < lengths[:, None]  # [prompt, token]
        padded = torch.zeros(is_token.shape, dtype=torch.float64)
        padded[is_token] = torch.from_numpy(logits.astype(np.float64))
        padded.requires_grad_()
        unsafe = torch.tensor(self.problem.unsafe[rows], dtype=torch.float64)
        shares = torch.tensor(self.problem.weights[rows], dtype=torch.float64)
        total = (shares * self.loss(padded, lengths, unsafe)).sum()
        (slopes,) = torch.autograd.grad(total, padded)
        of_tokens = slopes[is_token].numpy()
        of_weights = of_tokens.astype(np.float32) @ tokens
        return total.item(), np.append(of_weights, of_tokens.sum())
