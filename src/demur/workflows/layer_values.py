"""What each layer that a detector reads says by itself.

Of a linear read-out it is the layer's own product with its weights, of a layered method the
log-odds of the layer's own discriminant. Other methods tell no layers apart.
"""

from dataclasses import dataclass

import numpy as np

from demur.core.linear import LinearDetector
from demur.core.protocols import Detector
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.detectors._layers import LayerDiscriminants


@dataclass(frozen=True)
class Level:
    """A layer of a read."""

    layer: int
    """0-based decoder block."""
    read: str
    """Where in the prompt, and at which site."""


def levels_of(detector: Detector, *, num_blocks: int) -> tuple[Level, ...]:
    """Return the layers whose own values are known, in the order of `layer_values`.

    Args:
        detector: Fitted.
        num_blocks: Of the model: layers from its end are counted from there.
    """
    if not isinstance(detector, LinearDetector) and _discriminants(detector) is None:
        return ()
    return tuple(
        Level(layer % num_blocks, f"{read.positions} {read.site}")
        for read in detector.reads
        if isinstance(read, CaptureSpec)
        for layer in read.layers
    )


def layer_values(detector: Detector, readings: Readings) -> Array:
    """Return the value of each layer by itself, [prompt, level]; higher is less safe.

    Args:
        detector: Fitted; one that `levels_of` knows levels of.
        readings: That hold its reads.
    """
    discriminants = _discriminants(detector)
    if discriminants is not None:
        return discriminants.log_odds(readings, detector.reads)
    assert isinstance(detector, LinearDetector), "no other detector has levels"
    weights = detector.readout().weights
    parts = [
        np.vecdot(readings.pooled(read).astype(np.float64), weights[read].astype(np.float64))
        for read in detector.reads
        if isinstance(read, CaptureSpec)
    ]
    values: Array = np.concatenate(parts, axis=1)
    return values


def _discriminants(detector: Detector) -> LayerDiscriminants | None:
    found = getattr(detector, "layers_", None)
    return found if isinstance(found, LayerDiscriminants) else None
