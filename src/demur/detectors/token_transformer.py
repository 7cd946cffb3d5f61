"""A small transformer over the hidden states of a prompt's tokens, rather than of its last one.

Each token's state is standardised and projected to a small width; one transformer layer lets the
tokens see each other, and the mean over them gives one logit. It finds what the model no longer
carries at the last token, and pays for it: every token's state leaves the model, so that captured
prompts take as much room as they have tokens, and a score is a forward pass of the small network.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1: the Transformer-based
detector.

Differs: the paper's code is not released, and its input, size and optimiser are not known to us:
that it reads all tokens is our reading, and one layer of width 128 with 4 heads, sinusoidal
positions counted from the last token, the mean over tokens, dropout 0.1 and 8 epochs are ours. So
is AdamW at 1e-3: so small a network starts from scratch and gets few steps of a small set, which
the 1e-4 that is usual for large ones would hardly move. A layer in the middle of the model is read
rather than the last; only the last 256 tokens count; labels and sources are balanced; the threshold
is calibrated instead of fixed at 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, middle_layer
from demur.core.registry import import_named
from demur.detectors import _token_transformer as network
from demur.detectors._balance import Balance
from demur.detectors._tokens import moments

__all__ = ["TokenTransformer"]

Pool = Literal["mean", "last"]

_PREFIX = "encoder."


@dataclass(frozen=True)
class _Fit:
    """What is fitted."""

    encoder: network.TokenEncoder
    mean: Array
    """[feature], float64."""
    scale: Array
    """[feature], float64; infinity silences a feature."""


@dataclass
class TokenTransformer(Detector):
    """A transformer over the states of a prompt's tokens.

    Args:
        reads: Captures of the same positions, not pooled; each token's states are joined.
    """

    d_hidden: int = 128
    """Width of the network, even and a multiple of `num_heads`."""
    num_layers: int = 1
    """Transformer layers, over 0."""
    num_heads: int = 4
    """Attention heads of a layer, over 0."""
    pool: Pool = "mean"
    """What the logit is taken from: the mean over the tokens, or the last one."""
    max_positions: int = 256
    """Only so many tokens at the end of a prompt are used, over 0."""
    dropout: float = 0.1
    """Share of activations that are dropped in training, 0 to below 1."""
    lr: float = 1e-3
    """Step size of AdamW, over 0."""
    weight_decay: float = 1e-2
    """Of AdamW, 0 or more."""
    epochs: int = 8
    """Passes over the training prompts, over 0; there is no early stopping."""
    batch_size: int = 32
    """Prompts a step, over 0."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        counts = ("d_hidden", "num_layers", "num_heads", "max_positions", "epochs", "batch_size")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.d_hidden % self.num_heads or self.d_hidden % 2:
            raise ConfigError(
                f"d_hidden is {self.d_hidden}: expected an even multiple of num_heads, which is "
                f"{self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: expected 0 to below 1")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}: expected more than 0")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}: expected 0 or more")
        for name, choices in (("pool", get_args(Pool)), ("balance", get_args(Balance))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: expected one of {choices}")
        self.fit_: _Fit | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return all tokens at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks), positions="all"),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Train on labelled prompts and return self; torch's global generator is left alone.

        Args:
            readings: That hold the reads.
            targets: Of the same prompts.
            seed: Of the first weights, of dropout and of the order of the prompts.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        if len(readings) != len(targets):
            raise DataError(
                f"the readings hold {len(readings)} prompts, the targets {len(targets)}"
            )
        prompts = self._tokens(readings)
        if len({prompt.shape[1] for prompt in prompts}) > 1:
            raise DataError("the prompts' states differ in shape: capture them with one model")
        mean, scale = moments(prompts)
        # scikit-learn is loaded for a fit only: scoring needs torch alone.
        logistic = import_named("demur.detectors._logistic")
        encoder, _ = network.train(
            prompts,
            targets.unsafe.astype(bool),
            logistic.balanced_weights(targets, self.balance),
            shape=self._shape(len(mean)),
            training=network.Training(self.epochs, self.lr, self.weight_decay, self.batch_size),
            mean=mean,
            scale=scale,
            seed=seed,
        )
        self.fit_ = _Fit(encoder, mean, scale)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the logits [prompt], float64; each prompt is scored by itself."""
        fit = self._fitted()
        scores = []
        for prompt in self._tokens(readings):
            if prompt.shape[1] != len(fit.mean):
                raise DataError(
                    f"a prompt's states have shape {prompt.shape}: expected "
                    f"[position, {len(fit.mean)}], all reads and layers joined"
                )
            tokens = network.standardised(prompt, fit.mean, fit.scale)
            scores.append(network.score(fit.encoder, tokens))
        return np.array(scores, dtype=np.float64)

    def state(self) -> dict[str, Array]:
        """Return `mean` and `scale` [feature], float64, and `encoder.NAME` of each parameter."""
        fit = self._fitted()
        encoder = network.to_arrays(fit.encoder)
        parameters = {f"{_PREFIX}{name}": array for name, array in encoder.items()}
        return {"mean": fit.mean.copy(), "scale": fit.scale.copy(), **parameters}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a trained network and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        arrays = {name: array.copy() for name, array in state.items()}
        mean, scale = arrays.pop("mean", np.empty(0)), arrays.pop("scale", np.empty(0))
        if mean.ndim != 1 or mean.shape != scale.shape or not mean.size:
            raise DataError(
                f"mean and scale have shapes {mean.shape} and {scale.shape}: expected [feature]"
            )
        if not np.isfinite(mean).all() or not (scale > 0).all():
            raise DataError("mean or scale is not finite and in range: fit the detector again")
        parameters = {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
        encoder = network.from_arrays(parameters, self._shape(len(mean)))
        self.fit_ = _Fit(encoder, mean, scale)
        return self

    def _fitted(self) -> _Fit:
        if self.fit_ is None:
            raise NotFittedError("TokenTransformer is not fitted: call fit or load_state")
        return self.fit_

    def _shape(self, num_features: int) -> network.Shape:
        return network.Shape(
            num_features, self.d_hidden, self.num_layers, self.num_heads, self.pool, self.dropout
        )

    def _tokens(self, readings: Readings) -> list[Array]:
        """Return the last tokens of each prompt, reads and layers joined: [position, feature].

        Raises:
            CapabilityError: A read was not captured.
            DataError: A read is pooled, a state is not finite, or the reads' positions differ.
        """
        specs = [
            read for read in self.reads if isinstance(read, CaptureSpec) and not read.is_pooled
        ]
        if len(specs) < len(self.reads) or not specs:
            raise DataError(f"a token transformer needs captures by token, got {list(self.reads)}")
        if len(set(specs)) < len(specs):
            raise DataError(f"a read is given twice: {list(self.reads)}")
        of_reads = zip(*(readings.ragged(spec) for spec in specs), strict=True)
        return [self._joined(arrays) for arrays in of_reads]

    def _joined(self, arrays: tuple[Array, ...]) -> Array:
        """Return one prompt's tokens [position, feature] from [layer, position, d_model] a read."""
        counts = {array.shape[1] for array in arrays}
        if len(counts) > 1 or counts == {0}:
            raise DataError(f"the reads hold {sorted(counts)} tokens: expected the same, over 0")
        last = [array[:, -self.max_positions :].swapaxes(0, 1) for array in arrays]
        return np.concatenate([part.reshape(len(part), -1) for part in last], axis=1)
