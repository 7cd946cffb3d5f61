"""Rolling attention: a small network reads each token, and heads attend within a short window.

Two layers of rectified units turn each token's states into features. Each head averages the tokens'
values by attention, over the last 10 tokens only, and the heads are summed; the score is the
highest of all windows. So a harmful stretch of a long text is neither diluted, as by a mean, nor
does one word decide, as with a maximum. What is trained so may run as MultiMax too, the sum over
heads of the highest value of any token: set `running`. It scores a text while it grows.

Paper: Building Production-Ready Probes for Gemini (2026), arXiv 2601.11516: the rolling attention
probe, and MultiMax at run time.

Differs: the paper's code is not released; that it takes the highest of summed heads, rather than
sums each head's highest, is our reading. Epochs are counted instead of 1,000 steps: with 3,200
prompts they are the same. A window counts once it is full, or the first tokens would decide alone;
the layer after half of the depth is read; prompts are trained on with their last tokens only;
labels and sources are balanced; the threshold is calibrated for a false-positive rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError, NotFittedError
from demur.core.protocols import StreamingDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, middle_layer
from demur.core.registry import import_named
from demur.detectors import _rolling as network
from demur.detectors import _tokens
from demur.detectors._balance import Balance, require_balance

__all__ = ["RollingAttention"]

Running = Literal["rolling", "multimax"]


@dataclass
class RollingAttention(StreamingDetector):
    """Attention heads over the last few tokens, of which the highest window counts.

    Args:
        reads: One capture by token.
    """

    window: int = 10
    """Tokens that attention averages over, over 0; the paper: 10."""
    running: Running = "rolling"
    """How texts are scored; training is always `rolling`."""
    d_hidden: int = 100
    """Units of each of the two layers, over 0; the paper: 100."""
    num_heads: int = 10
    """Attention heads, over 0; the paper: 10."""
    epochs: int = 20
    """Passes over the training prompts, over 0; there is no early stopping."""
    lr: float = 1e-3
    """Step size of AdamW, over 0."""
    weight_decay: float = 1e-2
    """Of AdamW, 0 or more; more of it regularises harder."""
    batch_size: int = 64
    """Prompts a step, over 0."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""
    max_fit_tokens: int = 256
    """Only so many tokens at the end of a prompt are trained on, over 0; all are scored."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        counts = ("window", "d_hidden", "num_heads", "epochs", "batch_size", "max_fit_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}: expected more than 0")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}: expected 0 or more")
        if self.running not in get_args(Running):
            raise ConfigError(f"running is {self.running!r}: expected one of {get_args(Running)}")
        require_balance(self.balance)
        self._read = _tokens.require_token_read(self.reads)
        is_rolling = self.running == "rolling"
        self._rule = network.Rolling(self.window) if is_rolling else network.MultiMax()
        self.heads_: network.TokenHeads | None = None

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
        """Train on labelled prompts and return self; torch's global generator is left alone.

        Args:
            readings: That hold the read.
            targets: Of the same prompts.
            seed: Of the first weights and of the order of the prompts.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        prompts = _tokens.token_states(readings, self._read, num_prompts=len(targets))
        _tokens.require_same_shape(prompts)
        # scikit-learn and torch are loaded for a fit only: scoring needs NumPy.
        fitting = import_named("demur.detectors._rolling_fit")
        logistic = import_named("demur.detectors._logistic")
        training = fitting.Training(
            self.window,
            self.d_hidden,
            self.num_heads,
            self.epochs,
            self.lr,
            self.weight_decay,
            self.batch_size,
        )
        arrays, _ = fitting.train(
            [states[:, -self.max_fit_tokens :] for states in prompts],
            targets.unsafe.astype(bool),
            logistic.balanced_weights(targets, self.balance),
            training=training,
            seed=seed,
        )
        self.heads_ = self._heads_of(arrays)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the logits [prompt], float64; each prompt is scored by itself."""
        heads = self._fitted()
        prompts = _tokens.token_states(readings, self._read, num_prompts=len(readings))
        scores: Array = np.empty(len(prompts))
        for row, states in enumerate(prompts):
            _tokens.require_shape(states, heads.shape)
            scores[row] = self._rule.score(*heads.read(_tokens.flat(states)))
        return scores

    def start(self, num_rows: int) -> dict[str, Array]:
        """Return the state of texts of no tokens yet; see `StreamingDetector.start`."""
        return self._rule.start(num_rows, self.num_heads)

    def update(self, state: dict[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        """Return the state after one more token, and the scores [row] of the texts so far.

        Args:
            state: From `start` or the last `update`.
            states: Of the new token of each row, [row, layer, d_model].

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite, or of another shape.
        """
        heads = self._fitted()
        _tokens.require_new_tokens(states, heads.shape)
        # One product a row: a matrix product would round a row differently with its neighbours.
        queries, values = heads.read(states.reshape(len(states), 1, -1))
        return self._rule.update(state, queries[:, 0], values[:, 0])

    def state(self) -> dict[str, Array]:
        """Return the arrays that `_rolling.TokenHeads` names."""
        return {name: array.copy() for name, array in self._fitted().arrays.items()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a trained network and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        self.heads_ = self._heads_of({name: array.copy() for name, array in state.items()})
        return self

    def _heads_of(self, arrays: Mapping[str, Array]) -> network.TokenHeads:
        return network.TokenHeads(
            arrays,
            num_layers=len(self._read.layers),
            d_hidden=self.d_hidden,
            num_heads=self.num_heads,
        )

    def _fitted(self) -> network.TokenHeads:
        if self.heads_ is None:
            raise NotFittedError("RollingAttention is not fitted: call fit or load_state")
        return self.heads_
