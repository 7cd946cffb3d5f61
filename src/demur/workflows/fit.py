"""Fits a detector: capture, fit on train, threshold on validation, metrics, artifact."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from demur.core.artifacts import Artifact, Calibration, save
from demur.core.errors import ConfigError
from demur.core.examples import Example, targets_of
from demur.core.heads import CategoryHeads
from demur.core.protocols import (
    Detector,
    Engine,
    Stream,
    StreamedDetector,
    StreamingDetector,
    Targets,
    whole,
)
from demur.core.readings import Array
from demur.core.reads import Read
from demur.core.streaming import require_streaming, token_read
from demur.guard import fingerprint
from demur.guard.bounds import num_groups_needed
from demur.guard.calibration import calibrate, supported_rates
from demur.workflows.card import model_card
from demur.workflows.machine import library_versions
from demur.workflows.reply_scores import highest_scores

FINGERPRINT_TOLERANCE = 0.25
"""Of the spread (standard deviation) of the validation scores: see `docs/architecture.md`."""

Capture = Callable[[Sequence[Example], Sequence[Read]], Stream]
"""Returns the readings of examples, in parts."""


@dataclass(frozen=True)
class Fitted:
    """A fitted, calibrated detector and how it did on validation prompts."""

    detector: Detector
    calibration: Calibration
    scores: Array
    """Of the validation prompts, or the highest of each validation reply."""
    metrics: Mapping[str, float]


def hold_out(
    examples: Sequence[Example], *, share: float = 0.2, seed: int
) -> tuple[list[Example], list[Example]]:
    """Part examples into training and validation, by whole groups of each label.

    Args:
        examples: Labelled; a group's label for the draw is that of its first example.
        share: Of the groups that are held out.
        seed: Of the draw.
    """
    labels: dict[str, str | None] = {}
    for example in examples:
        labels.setdefault(example.group_key, example.label)
    generator = np.random.default_rng(seed)
    held: set[str] = set()
    for label in sorted({str(label) for label in labels.values()}):
        groups = sorted(group for group, of in labels.items() if str(of) == label)
        drawn = generator.permutation(len(groups))[: round(share * len(groups))]
        held.update(groups[index] for index in drawn)
    train = [example for example in examples if example.group_key not in held]
    return train, [example for example in examples if example.group_key in held]


def require_fittable(train: Sequence[Example], val: Sequence[Example], fpr: float) -> None:
    """Refuse, before any work, prompts that no detector can be fitted on or calibrated with.

    Raises:
        ConfigError: There are too few benign validation groups for the false-positive rate.
        DataError: A prompt has no label, or all have the same.
    """
    targets_of([*train, *val])
    num_groups = len({example.group_key for example in val if example.label == "safe"})
    needed = num_groups_needed(fpr)
    if num_groups < needed:
        rates = ", ".join(f"{rate:g}" for rate in supported_rates(num_groups))
        raise ConfigError(
            f"a false-positive rate of {fpr} needs {needed} benign validation groups, got "
            f"{num_groups}: add benign prompts{f', or ask for one of {rates}' if rates else ''}"
        )


def fit(
    detector: Detector,
    train: Sequence[Example],
    val: Sequence[Example],
    *,
    capture: Capture,
    follow: Capture | None = None,
    fpr: float,
    calibrated_on: str,
    seed: int,
) -> Fitted:
    """Fit a detector on `train`, and calibrate it on `val`.

    A detector that watches replies is calibrated on the highest score that each reply ever has:
    of safe replies no more than the rate are ever stopped.

    Args:
        detector: Unfitted.
        train: Labelled prompts, or prompts with labelled replies.
        val: Labelled prompts of other groups.
        capture: Returns the readings of prompts, in parts.
        follow: Returns those of validation replies by token, which are gone through once; None
            captures them like all others.
        fpr: The default false-positive rate; all rates that `val` supports are calibrated.
        calibrated_on: What the benign prompts of `val` are, in words.
        seed: Of the fit.

    Raises:
        ConfigError: `val` has too few benign groups for `fpr`, or the detector watches replies and
            cannot score them while they grow.
        DataError: Labels are missing, or of one kind only.
    """
    if detector.watches == "reply":
        require_streaming(detector)
    require_fittable(train, val, fpr)
    targets, val_targets = targets_of(train), targets_of(val)
    parts = capture(train, detector.reads)
    if isinstance(detector, StreamedDetector):
        detector.fit_stream(parts, targets, seed=seed)
    else:
        detector.fit(whole(parts), targets, seed=seed)
    if detector.watches == "reply":
        val_parts = (follow or capture)(val, [token_read(detector)])
    else:
        val_parts = capture(val, detector.reads)
    scores = scores_of(detector, val_parts, len(val))
    calibration = _calibrated(scores, val_targets, fpr, calibrated_on)
    flagged = scores >= calibration.at(fpr).threshold
    metrics = {
        "val_auroc": float(roc_auc_score(val_targets.unsafe, scores)),
        "val_recall_at_default": float(flagged[val_targets.unsafe].mean()),
        "val_fpr_at_default": float(flagged[~val_targets.unsafe].mean()),
    } | {f"val_{name}": value for name, value in detector.measured().items()}
    return Fitted(detector, calibration, scores, metrics)


def _calibrated(scores: Array, val: Targets, fpr: float, calibrated_on: str) -> Calibration:
    """Calibrate the rate asked for, and all that the validation prompts support."""
    num_groups = len(np.unique(val.group[~val.unsafe]))
    return calibrate(
        scores,
        val.unsafe,
        val.group,
        rates=tuple(sorted({fpr, *supported_rates(num_groups)})),
        calibrated_on=calibrated_on,
        default_fpr=fpr,
    )


def scores_of(detector: Detector, parts: Stream, num_prompts: int) -> Array:
    """Return the scores [prompt] of prompts whose readings come in parts.

    Of a detector that watches replies they are the highest that each reply ever has, and the parts
    hold what it reads of each token.
    """
    scores: Array = np.full(num_prompts, np.nan)
    for rows, readings in parts:
        if isinstance(detector, StreamingDetector) and detector.watches == "reply":
            scores[rows] = highest_scores(detector, readings)
        else:
            scores[rows] = detector.decision_function(readings)
    return scores


def write_artifact(
    fitted: Fitted,
    method: str,
    *,
    engine: Engine,
    train: Sequence[Example],
    val: Sequence[Example],
    out: Path,
    notes: str = "",
    heads: CategoryHeads | None = None,
) -> Artifact:
    """Write a fitted detector's folder, with a fingerprint taken on the engine.

    Args:
        fitted: From `fit`.
        method: The detector's public name.
        engine: Runs the model that the detector was fitted on.
        train: What it was fitted on; only hashes and counts are stored.
        val: What it was calibrated on.
        out: The folder; an artifact there is replaced.
        notes: Paragraphs for the model card.
        heads: For category keys, fitted on the same readings.

    Raises:
        ConfigError: The folder holds something else.
    """
    artifact = Artifact(
        method=method,
        hyper_parameters=json.loads(json.dumps(fitted.detector.hyper_parameters())),
        model_id=engine.model_id,
        state=fitted.detector.state(),
        moments=fitted.detector.moments(),
        heads=heads,
        calibration=fitted.calibration,
        fingerprint=fingerprint.take(engine, fitted.detector),
        fingerprint_tolerance=float(FINGERPRINT_TOLERANCE * fitted.scores.std()),
        provenance={
            "versions": library_versions("torch", "transformers", "scikit-learn"),
            "train": describe_set(train),
            "val": describe_set(val),
            "metrics": dict(fitted.metrics),
        },
    )
    save(model_card(artifact, notes=notes), out)
    return artifact


def describe_set(examples: Sequence[Example]) -> dict[str, object]:
    """Return a hash of a set's texts and its counts by source: never a text."""
    digest = hashlib.sha256()
    counts: dict[str, dict[str, int]] = {}
    for example in examples:
        digest.update(repr(example.chat.as_messages()).encode())
        for text in example.replies:
            digest.update(text.encode())
        of_source = counts.setdefault(example.source or "unnamed", {"unsafe": 0, "safe": 0})
        of_source[example.label or "safe"] += 1
    return {"sha256": digest.hexdigest(), "prompts": len(examples), "sources": counts}
