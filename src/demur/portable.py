"""Scores with a linear artifact where there is neither torch nor transformers: NumPy only.

For servers that hand out hidden states by themselves. The states must come from the model that the
detector was fitted on, and be read as `reads` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demur.core import artifacts
from demur.core.artifacts import Calibration
from demur.core.errors import CapabilityError, DataError
from demur.core.linear import LinearDetector
from demur.core.readings import Array, Readings, Values
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Read
from demur.core.types import ModelId


@dataclass(frozen=True)
class PortableDetector:
    """A fitted linear detector with its calibration."""

    model_id: ModelId
    """The model that the states must come from."""
    readout: LinearReadout
    calibration: Calibration

    @property
    def reads(self) -> tuple[CaptureSpec, ...]:
        """What must be captured of a prompt, in the order in which `score` takes it."""
        return tuple(self.readout.weights)

    def score(self, states: Sequence[Array]) -> Array:
        """Return the scores [prompt], float64; higher is less safe.

        Args:
            states: For each read an array [prompt, layer, d_model].

        Raises:
            DataError: An array is missing, of another shape, or not finite.
        """
        if len(states) != len(self.reads):
            raise DataError(f"got {len(states)} arrays of states: expected {len(self.reads)}")
        values: dict[Read, Values] = {
            spec: np.asarray(array, dtype=np.float32)
            for spec, array in zip(self.reads, states, strict=True)
        }
        return self.readout.score(Readings(values))

    def probability(self, scores: Array) -> Array:
        """Return calibrated probabilities [prompt] of being unsafe, at even odds."""
        logits = self.calibration.slope * np.asarray(scores) + self.calibration.intercept
        probabilities: Array = 0.5 * (1 + np.tanh(0.5 * logits))
        return probabilities

    def flagged(self, scores: Array, *, fpr: float | None = None) -> Array:
        """Return which prompts are flagged: [prompt], bool.

        Args:
            scores: From `score`.
            fpr: A calibrated false-positive rate; None is the artifact's default.

        Raises:
            ConfigError: The rate was not calibrated.
            DataError: A score is not finite.
        """
        rate = self.calibration.default_fpr if fpr is None else fpr
        if not np.isfinite(scores).all():
            raise DataError("a score is not finite: it can neither pass nor be flagged")
        flags: Array = np.asarray(scores) >= self.calibration.at(rate).threshold
        return flags


def load(folder: Path) -> PortableDetector:
    """Load an artifact's folder.

    Raises:
        CapabilityError: The detector is not of the linear family.
        ConfigError: There is no artifact in the folder.
        DataError: The artifact is damaged.
    """
    artifact = artifacts.read(folder)
    detector = artifacts.restore(artifact)
    if not isinstance(detector, LinearDetector):
        raise CapabilityError(
            f"{folder} holds a {artifact.method!r} detector, which is not linear: it needs an "
            "engine; use Guard.load"
        )
    return PortableDetector(artifact.model_id, detector.readout(), artifact.calibration)
