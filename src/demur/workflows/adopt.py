"""Judges whether a detector may serve a variant of its model: quantised, fine-tuned, re-templated.

`accept`, if all of these hold: architecture, tokenizer and chat template are the same; the scores
of the fingerprint texts differ by no more than the artifact's tolerance (a quarter of the spread of
the validation scores); the benign prompts are not flagged more often than the rate of the
threshold, at a confidence of 95%; and the ranks are kept.

`recalibrate`, if the ranks are kept and the states are still those of the same model:
- ranks: where the first model is at hand, the AUROC on labelled prompts falls by no more than 0.02
  and the rank correlation (Spearman's) of all scores on both models is at least 0.9; where it is
  not, the AUROC is at least 0.8;
- states: those of the fingerprint texts moved, beyond what all of them moved alike, by no more than
  once their own spread (the root mean square; the median over layers). States of unrelated weights
  move by 1.4 times their spread.

`refit`, otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from demur.core.artifacts import Artifact
from demur.core.errors import ModelMismatchError
from demur.core.examples import Example, targets_of
from demur.core.protocols import Detector, Engine
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.types import ModelId
from demur.guard import fingerprint
from demur.guard.bounds import least_rate
from demur.guard.calibration import Promise, platt
from demur.workflows.calibrate import groups_of, recalibrated
from demur.workflows.card import model_card, notes_of
from demur.workflows.fit import FINGERPRINT_TOLERANCE

MAX_AUROC_LOSS = 0.02
MIN_RANK_CORRELATION = 0.9
MIN_AUROC = 0.8
MAX_STATE_SHIFT = 1.0

Decision = Literal["accept", "recalibrate", "refit"]


@dataclass(frozen=True)
class Scored:
    """Prompts with a detector's scores on the variant."""

    examples: Sequence[Example]
    scores: Array
    """[prompt]."""
    scores_before: Array | None = None
    """[prompt], on the first model, where it is at hand."""


@dataclass(frozen=True)
class Comparison:
    """What a detector does on a variant of its model."""

    differences: tuple[str, ...]
    """Of tokenizer and chat template, those that differ."""
    score_shift: float | None
    """Largest difference of a fingerprint score; None if the texts have other tokens."""
    score_tolerance: float
    state_shift: float | None
    """How far the fingerprint's states moved, in units of their spread; None if it reads none."""
    auroc: float
    """On labelled prompts."""
    auroc_needed: float
    rank_correlation: float | None
    """Of the scores on both models; None if the first is not at hand."""
    flag_rate: float
    """Of the benign groups, at the threshold for `fpr`."""
    flag_rate_proven: float
    """Lower end of its one-sided 95% interval."""
    fpr: float

    @property
    def keeps_ranks(self) -> bool:
        """Labelled prompts are still told apart."""
        correlation = 1.0 if self.rank_correlation is None else self.rank_correlation
        return self.auroc >= self.auroc_needed and correlation >= MIN_RANK_CORRELATION

    @property
    def keeps_states(self) -> bool:
        """The states are still those of the same model, as far as they can be compared."""
        return self.state_shift is None or self.state_shift <= MAX_STATE_SHIFT

    @property
    def keeps_scores(self) -> bool:
        """The thresholds still mean what they meant."""
        return (
            not self.differences
            and self.score_shift is not None
            and self.score_shift <= self.score_tolerance
            and self.flag_rate_proven <= self.fpr
        )

    @property
    def decision(self) -> Decision:
        """What is to be done; see the module."""
        if not (self.keeps_ranks and self.keeps_states):
            return "refit"
        return "accept" if self.keeps_scores else "recalibrate"

    def as_dict(self) -> dict[str, object]:
        """Return the decision and what led to it, for JSON."""
        return {"decision": self.decision, **vars(self)}


def require_same_architecture(artifact: Artifact, model_id: ModelId) -> None:
    """Refuse a model of other shapes: no threshold could help there.

    Raises:
        ModelMismatchError: It has another number of blocks, width or vocabulary.
    """
    if artifact.model_id.architecture != model_id.architecture:
        raise ModelMismatchError(
            f"the detector was fitted on {artifact.model_id.name}, and {model_id.name} has another "
            "architecture (blocks, width or vocabulary): it is no variant; fit a detector on it"
        )


def compare(
    artifact: Artifact,
    detector: Detector,
    engine: Engine,
    *,
    benign: Scored,
    labelled: Scored,
    fpr: float,
) -> Comparison:
    """Compare a detector on a variant with what its artifact says of it.

    Args:
        artifact: Of the model that it was fitted on.
        detector: The artifact's.
        engine: Runs the variant.
        benign: Prompts of the traffic that the variant will see.
        labelled: Unsafe and safe prompts of the kind that the detector was fitted on.
        fpr: The rate of the threshold that is to be kept.

    Raises:
        DataError: The labelled prompts have one label only, or lack it.
    """
    found, stored = fingerprint.take(engine, detector), artifact.fingerprint
    same_tokens = np.array_equal(found["token_ids"], stored["token_ids"])
    unsafe = targets_of(labelled.examples).unsafe
    before = labelled.scores_before
    # One flag a group, by its highest score: as thresholds are calibrated.
    flagged = benign.scores >= artifact.calibration.at(fpr).threshold
    groups = groups_of(benign.examples)
    num_flagged, num_groups = len(np.unique(groups[flagged])), len(np.unique(groups))
    return Comparison(
        differences=tuple(artifact.model_id.differences(engine.model_id)),
        score_shift=(
            float(np.abs(found["scores"] - stored["scores"]).max()) if same_tokens else None
        ),
        score_tolerance=artifact.fingerprint_tolerance,
        state_shift=state_shift(detector, stored, found, same_tokens=same_tokens),
        auroc=float(roc_auc_score(unsafe, labelled.scores)),
        auroc_needed=(
            MIN_AUROC if before is None else float(roc_auc_score(unsafe, before)) - MAX_AUROC_LOSS
        ),
        rank_correlation=rank_correlation(benign, labelled),
        flag_rate=num_flagged / num_groups,
        flag_rate_proven=least_rate(num_flagged, num_groups),
        fpr=fpr,
    )


def rank_correlation(*parts: Scored) -> float | None:
    """Return Spearman's correlation of scores on both models; None where one is not at hand."""
    before = [part.scores_before for part in parts if part.scores_before is not None]
    if len(before) < len(parts):
        return None
    now = np.concatenate([part.scores for part in parts])
    return float(spearmanr(np.concatenate(before), now).statistic)


def state_shift(
    detector: Detector,
    stored: Mapping[str, Array],
    found: Mapping[str, Array],
    *,
    same_tokens: bool,
) -> float | None:
    """Return how far the states of a fingerprint moved, in units of their spread.

    What all texts moved alike does not count: it changes no rank. Of several reads the one that
    moved furthest counts; reads of every token are compared only where the tokens are the same.
    """
    shifts = []
    for number, read in enumerate(detector.reads):
        if not isinstance(read, CaptureSpec) or not (read.is_pooled or same_tokens):
            continue
        # [layer, text or token, d_model], around the mean of the texts.
        states, moved = (
            np.moveaxis(fingerprint_[f"states.{number}"].astype(np.float64), 0, 1)
            if read.is_pooled
            else fingerprint_[f"states.{number}"].astype(np.float64)
            for fingerprint_ in (stored, found)
        )
        states, moved = (array - array.mean(1, keepdims=True) for array in (states, moved))
        spread = np.square(states).mean((1, 2))
        shifts.append(float(np.median(np.sqrt(np.square(moved - states).mean((1, 2)) / spread))))
    return max(shifts, default=None)


def adopted(
    artifact: Artifact,
    detector: Detector,
    engine: Engine,
    *,
    benign: Scored,
    labelled: Scored,
    calibrated_on: str,
    fpr: float,
    promise: Promise,
) -> Artifact:
    """Return the artifact for a variant, with thresholds of its own on the benign prompts.

    Probabilities are fitted anew on the labelled prompts. Category heads and kept moments belong
    to the states of the first model and are left out.

    Args:
        artifact: Of the model that the detector was fitted on.
        detector: The artifact's.
        engine: Runs the variant.
        benign: What the thresholds are calibrated on.
        labelled: What probabilities are calibrated on.
        calibrated_on: What the benign prompts are, in words.
        fpr: The default rate.
        promise: What the thresholds are to promise.

    Raises:
        ConfigError: There are too few benign prompts for the rate.
    """
    unsafe = targets_of(labelled.examples).unsafe
    slope, intercept = platt(labelled.scores, unsafe)
    moved = replace(
        artifact,
        model_id=engine.model_id,
        calibration=replace(artifact.calibration, slope=slope, intercept=intercept),
        fingerprint=fingerprint.take(engine, detector),
        fingerprint_tolerance=float(FINGERPRINT_TOLERANCE * labelled.scores.std()),
        moments={},
        heads=None,
        provenance={**artifact.provenance, "adopted_from": artifact.model_id.as_dict()},
    )
    recalibrated_ = recalibrated(
        moved,
        benign.scores,
        benign.examples,
        calibrated_on=calibrated_on,
        fpr=fpr,
        promise=promise,
    )
    origin = f"Fitted on {artifact.model_id.name} and adopted: thresholds and probabilities are new"
    return model_card(recalibrated_, notes=f"{notes_of(artifact.card)}\n\n{origin}.".strip())
