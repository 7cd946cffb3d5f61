"""One linear logit a token, and a rule that makes a text's score of them; it scores as text grows.

The states of a token's layers are standardised and weighed; the logits of all tokens are then
aggregated. `mean` and `last` are logistic regressions on one state a prompt. `max`, `softmax` and
`ema` (the highest value of an exponential moving average) see single tokens or short stretches.
`window_mean` (SWiM) is the highest mean of 16 tokens in a row, and is trained on all such windows,
each weighed by how harmful it looks; `top_windows` is the mean of the 8 highest windows, and
penalises safe prompts whose windows differ. What is trained on windows may run as `ema`, which
keeps a single number a text: set `running`.

Paper: Constitutional Classifiers++ (2026), arXiv 2601.04603: SWiM, its loss and the EMA at run
time. Segment-Level Coherence (2026), arXiv 2604.14865: the highest windows and SegVar. Detecting
High-Stakes Interactions (2025), arXiv 2506.10805: mean, last, max and softmax.

Differs: weights are fitted by L-BFGS with a strong L2 penalty, from a logistic regression on the
mean, rather than by stochastic steps; what softmax weighs is part of the gradient, and SegVar uses
the same weights, where the papers' choice is not known to us. One layer of the residual stream is
read, not all of them, since every token's state leaves the model. A window or average counts only
once it is full, or a text's first tokens would decide alone; prompts are fitted to with their last
tokens only; labels and sources are balanced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import StreamingDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, middle_layer
from demur.core.registry import import_named
from demur.detectors import _aggregations as aggregations
from demur.detectors import _tokens
from demur.detectors._balance import Balance, require_balance

__all__ = ["TokenLinear"]

Aggregate = Literal["last", "mean", "max", "softmax", "ema", "window_mean", "top_windows"]
Running = Literal["same", "ema", "max"]

_CLOSED = ("last", "mean")
"""Aggregates whose logit is that of one state a prompt."""


@dataclass(frozen=True)
class _Fit:
    """What is fitted."""

    weights: Array
    """On raw states, [layer, d_model], float64."""
    bias: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of a token's states: [layer, d_model]."""
        return self.weights.shape[0], self.weights.shape[1]


@dataclass
class TokenLinear(StreamingDetector):
    """A linear logit a token, and an aggregation over tokens.

    Args:
        reads: One capture by token.
    """

    aggregation: Aggregate = "window_mean"
    """What is trained: how a prompt's score comes from the logits of its tokens."""
    running: Running = "same"
    """How texts are scored: as trained, or by the `ema` or the `max` of the same logits."""
    window: int = 16
    """Tokens of a window, over 0; both papers: 16."""
    num_windows: int = 8
    """Windows that `top_windows` takes the mean of, over 0; the paper: 8."""
    gain: float = 0.1
    """Share of the newest token in the moving average, over 0 to 1; SC-TopK's paper: 0.1."""
    temperature: float = 1.0
    """Of the softmax over a text's tokens or windows, over 0; the paper of SWiM: 1."""
    spread_penalty: float = 0.01
    """Of the variance of a safe prompt's windows in `top_windows`, 0 or more; the paper: 0.01."""
    c: float = 1e-3
    """Inverse strength of the L2 penalty, as scikit-learn's `C`, over 0. Small on purpose."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""
    max_fit_tokens: int = 256
    """Only so many tokens at the end of a prompt are fitted to, over 0; all are scored."""
    max_iterations: int = 200
    """Most steps of the solver, over 0."""
    batch_size: int = 64
    """Prompts that are standardised at once while fitting, over 0; changes memory only."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        for name in ("window", "num_windows", "max_fit_tokens", "max_iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("c", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected more than 0")
        if not 0 < self.gain <= 1:
            raise ConfigError(f"gain is {self.gain}: expected over 0 to 1")
        if not self.spread_penalty >= 0:
            raise ConfigError(f"spread_penalty is {self.spread_penalty}: expected 0 or more")
        for name, choices in (("aggregation", get_args(Aggregate)), ("running", get_args(Running))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: expected one of {choices}")
        require_balance(self.balance)
        self._read = _tokens.require_token_read(self.reads)
        self._running = self._aggregation(
            self.aggregation if self.running == "same" else self.running
        )
        self.fit_: _Fit | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the users' tokens at the layer after half of the depth, or at `layers`.

        Each state is divided by its root mean square, so that no token outweighs the others.
        """
        chosen = layers or middle_layer(num_blocks)
        return (CaptureSpec(chosen, positions="users", normalise="rms"),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        prompts = _tokens.token_states(readings, self._read, num_prompts=len(targets))
        _tokens.require_same_shape(prompts)
        # scikit-learn and torch are loaded for a fit only: scoring needs NumPy.
        fitting = import_named("demur.detectors._token_fit")
        logistic = import_named("demur.detectors._logistic")
        problem = fitting.Problem(
            [states[:, -self.max_fit_tokens :] for states in prompts],
            targets.unsafe.astype(bool),
            logistic.balanced_weights(targets, self.balance),
            c=self.c,
            max_iterations=self.max_iterations,
        )
        is_last = self.aggregation == "last"
        found = fitting.fit_pooled(problem, aggregations.Last() if is_last else aggregations.Mean())
        if self.aggregation not in _CLOSED:
            found = fitting.fit_tokens(
                problem, self._loss(), start=found, batch_size=self.batch_size
            )
        weights, bias = found
        shape = len(prompts[0]), prompts[0].shape[2]
        # Rounded as they are stored, so that a loaded detector scores alike.
        rounded = weights.astype(np.float32).astype(np.float64).reshape(shape)
        self.fit_ = _Fit(rounded, bias)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64; each prompt is scored by itself."""
        fit = self._fitted()
        prompts = _tokens.token_states(readings, self._read, num_prompts=len(readings))
        scores: Array = np.empty(len(prompts))
        for row, states in enumerate(prompts):
            _tokens.require_shape(states, fit.shape)
            logits = np.vecdot(states.astype(np.float64), fit.weights[:, None]).sum(0) + fit.bias
            scores[row] = self._running.score(logits)
        return scores

    def start(self, num_rows: int) -> dict[str, Array]:
        """Return the state of texts of no tokens yet; see `StreamingDetector.start`."""
        return self._running.start(num_rows)

    def update(self, state: dict[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        """Return the state after one more token, and the scores [row] of the texts so far.

        Args:
            state: From `start` or the last `update`.
            states: Of the new token of each row, [row, layer, d_model].

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite, or of another shape.
        """
        fit = self._fitted()
        _tokens.require_new_tokens(states, fit.shape)
        logits = np.vecdot(states.astype(np.float64), fit.weights).sum(1) + fit.bias
        return self._running.update(state, logits)

    def state(self) -> dict[str, Array]:
        """Return `weights` [layer, d_model], float32, and `bias` [1], float64."""
        fit = self._fitted()
        return {"weights": fit.weights.astype(np.float32), "bias": np.array([fit.bias])}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over weights and bias and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        if set(state) != {"weights", "bias"}:
            raise DataError(f"the state holds {sorted(state)}: expected ['bias', 'weights']")
        weights, bias = state["weights"], state["bias"]
        if weights.ndim != 2 or len(weights) != len(self._read.layers) or bias.shape != (1,):
            raise DataError(
                f"weights and bias have shapes {weights.shape} and {bias.shape}: expected "
                f"[{len(self._read.layers)}, d_model] and [1]"
            )
        if not np.isfinite(weights).all() or not np.isfinite(bias).all():
            raise DataError("a weight or the bias is not finite: fit the detector again")
        self.fit_ = _Fit(weights.astype(np.float64), float(bias.item()))
        return self

    def _fitted(self) -> _Fit:
        if self.fit_ is None:
            raise NotFittedError("TokenLinear is not fitted: call fit or load_state")
        return self.fit_

    def _aggregation(self, name: str) -> aggregations.Aggregation:
        one, windows = aggregations.Window(), aggregations.Window(self.window)
        parts: dict[str, tuple[aggregations.Smoothing, aggregations.Pool]] = {
            "last": (one, aggregations.Last()),
            "mean": (one, aggregations.Mean()),
            "max": (one, aggregations.Highest()),
            "softmax": (one, aggregations.Softmax(self.temperature)),
            "ema": (aggregations.Ema(self.gain), aggregations.Highest()),
            "window_mean": (windows, aggregations.Highest()),
            "top_windows": (windows, aggregations.Highest(self.num_windows)),
        }
        return aggregations.Aggregation(*parts[name])

    def _loss(self) -> object:
        """Return the loss of what is trained: see `_token_losses`."""
        losses = import_named("demur.detectors._token_losses")
        if self.aggregation == "window_mean":
            return losses.SegmentLoss(aggregations.Window(self.window), self.temperature)
        penalty = self.spread_penalty if self.aggregation == "top_windows" else 0.0
        return losses.ScoreLoss(self._aggregation(self.aggregation), penalty, self.temperature)
