"""Recalibrates an artifact on prompts of one's own: its states and weights stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from demur.core import artifacts
from demur.core.artifacts import Artifact
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.protocols import Detector, Engine
from demur.core.readings import Array
from demur.engines.transformers import TransformersEngine
from demur.guard.calibration import Promise, recalibrate
from demur.guard.loading import open_detector
from demur.workflows.capture import Capturer, Report, ignore_progress
from demur.workflows.card import model_card, notes_of
from demur.workflows.fit import describe_set, scores_of

NUM_LENGTHS = 3
"""Parts of the traffic by length, of equal size."""


def open_artifact(source: str | Path, engine: Engine) -> tuple[Artifact, Detector]:
    """Return an artifact and its detector, for the model that it was fitted on.

    Args:
        source: See `load_detector`; a detector that needs no fit gets its first thresholds here.
        engine: What the detector will read.

    Raises:
        ConfigError: There is no such artifact, or it does not judge prompts.
        ModelMismatchError: It was fitted on another model.
    """
    opened = open_detector(source, engine)
    return opened.artifact, opened.detector


def restore_of_prompts(artifact: Artifact) -> Detector:
    """Return an artifact's detector, if it judges prompts.

    Raises:
        ConfigError: It judges replies.
    """
    detector = artifacts.restore(artifact)
    if detector.watches != "prompt":
        raise ConfigError(
            f"detector {artifact.method!r} watches replies: only one that watches prompts can be "
            "calibrated on prompts; fit it again with --watches reply on replies of your own"
        )
    return detector


def require_benign(examples: Sequence[Example]) -> None:
    """Refuse prompts that are labelled unsafe; those without a label are taken as benign.

    Raises:
        DataError: There are such prompts.
    """
    unsafe = [example.id for example in examples if example.label == "unsafe"]
    if unsafe:
        raise DataError(
            f"{len(unsafe)} prompts are labelled unsafe (the first is {unsafe[0]!r}): leave them "
            "out, or calibrate on traffic without labels"
        )


def read_scores(
    engine: TransformersEngine,
    detector: Detector,
    examples: Sequence[Example],
    *,
    report: Report = ignore_progress,
) -> Array:
    """Return a detector's scores [prompt] of examples."""
    chats = [example.chat for example in examples]
    parts = Capturer(engine.loaded).parts(chats, detector.reads, report=report)
    return scores_of(detector, parts, len(examples))


def groups_of(examples: Sequence[Example]) -> Array:
    """Return the groups [prompt] of examples."""
    return np.array([example.group_key for example in examples])


def length_parts(engine: Engine, examples: Sequence[Example]) -> Array:
    """Return which third by number of prompt tokens each example belongs to, in words.

    The thirds are for calibration only: one threshold keeps the rate in each of them, so that a
    guard needs not know lengths. It is that of the length whose scores reach highest; the others
    are flagged less often than they might be.
    """
    lengths = np.array([len(engine.render(example.chat)) for example in examples])
    shares = np.arange(1, NUM_LENGTHS) / NUM_LENGTHS
    edges = np.unique(np.quantile(lengths, shares, method="lower"))
    between = [f"{low + 1} to {high} tokens" for low, high in pairwise(edges)]
    names = np.array([f"1 to {edges[0]} tokens", *between, f"over {edges[-1]} tokens"])
    parts: Array = names[np.searchsorted(edges, lengths)]
    return parts


def recalibrated(
    artifact: Artifact,
    scores: Array,
    examples: Sequence[Example],
    *,
    calibrated_on: str,
    fpr: float,
    promise: Promise,
    part: Array | None = None,
) -> Artifact:
    """Return an artifact whose thresholds are those of other prompts.

    Args:
        artifact: With the detector that gave the scores.
        scores: Of benign prompts, or of traffic without labels (`Promise.contamination`), [prompt].
        examples: The prompts.
        calibrated_on: What they are, in words.
        fpr: The default rate; all standard rates that the prompts support are calibrated.
        promise: What the thresholds are to promise.
        part: Of the traffic, [prompt], where the rates are to be kept in each part by itself.

    Raises:
        ConfigError: There are too few groups of prompts for the rate.
    """
    group = groups_of(examples)
    in_parts = [group] if part is None else [group[part == name] for name in np.unique(part)]
    least = min(len(np.unique(groups)) for groups in in_parts)
    shared = replace(promise, delta=promise.delta / len(in_parts))
    calibration = recalibrate(
        artifact.calibration,
        scores,
        group,
        rates=tuple(sorted({fpr, *shared.supported_rates(least)})),
        calibrated_on=calibrated_on,
        default_fpr=fpr,
        promise=promise,
        part=part,
    )
    provenance = provenance_of(artifact, examples, promise)
    return model_card(
        replace(artifact, calibration=calibration, provenance=provenance),
        notes=notes_of(artifact.card),
    )


def provenance_of(
    artifact: Artifact, examples: Sequence[Example], promise: Promise
) -> Mapping[str, Any]:
    """Return an artifact's provenance with other calibration prompts.

    Metrics at the former thresholds are left out.
    """
    described = describe_set(examples)
    if promise.contamination:
        del described["sources"]  # it counts by label, and there is none
    metrics = {
        name: value
        for name, value in artifact.provenance.get("metrics", {}).items()
        if not name.endswith("_at_default")
    }
    return {
        **artifact.provenance,
        "metrics": metrics,
        "calibration": {**described, "promise": asdict(promise)},
    }
