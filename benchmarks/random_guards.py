"""Detectors with random weights, and guards of them that flag nothing, to see what they cost."""

from typing import Any

import numpy as np

from demur.core.reads import CaptureSpec
from demur.detectors.linear import Linear
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply

NEVER = 1e9
"""A threshold that no score reaches."""


def reads_of(num_blocks: int, num_layers: int | None = None) -> tuple[CaptureSpec, ...]:
    """Return what a linear detector reads: at ten layers, or the last `num_layers`."""
    layers = None if num_layers is None else tuple(range(num_blocks - num_layers, num_blocks))
    return Linear.default_reads(num_blocks, layers=layers)


def random_guard(
    engine: TransformersEngine, *, num_detectors: int = 1, num_layers: int | None = None
) -> Guard:
    """Return a guard of linear detectors.

    Args:
        engine: Of the model that is guarded.
        num_detectors: All read the same layers, with weights of their own.
        num_layers: Of each; None is what a linear detector reads by default.
    """
    config = engine.loaded.model.config
    reads = reads_of(config.num_hidden_layers, num_layers)
    detectors = [random_detector(reads, config.hidden_size, seed=n) for n in range(num_detectors)]
    return Guard(
        engine,
        detectors,
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )


def random_detector(
    reads: tuple[CaptureSpec, ...], d_model: int, *, seed: int
) -> CalibratedDetector:
    """Return a linear detector that flags nothing.

    Args:
        reads: What it reads.
        d_model: Width of the states.
        seed: Of its weights.
    """
    generator = np.random.default_rng(seed)
    state: dict[str, Any] = {"bias": np.zeros(1)}
    for number, read in enumerate(reads):
        weights = generator.standard_normal((len(read.layers), d_model))
        state[f"weights.{number}"] = weights.astype(np.float32)
    fitted = Linear(reads).load_state(state)
    return CalibratedDetector(f"random-{seed}", fitted, NEVER, 1.0, 0.0, "random")
