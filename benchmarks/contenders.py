"""What the detection benchmark compares: demur's detector, and rivals fitted on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import roc_auc_score

from benchmarks.build_pretrained import FPR
from benchmarks.rows import Selection, SetCapturer
from demur.core.artifacts import Calibration
from demur.core.examples import targets_of
from demur.core.protocols import Detector
from demur.core.reads import CaptureSpec, Texts
from demur.detectors.layered_prototypes import LayeredPrototypes
from demur.detectors.linear import Linear
from demur.detectors.prototypes import Prototypes
from demur.detectors.sentence_embedding import SentenceEmbedding
from demur.detectors.tfidf import Tfidf
from demur.guard.calibration import calibrate
from demur.workflows.evaluate_scores import Contender, FrozenThreshold
from demur.workflows.suites import Suite

SINGLE_LAYER, SINGLE_PENALTY = 18, 1e-2
"""Of the single-layer logistic regression; chosen by `benchmarks.selection`."""
TEXT_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Values of `c` that TF-IDF chooses from, by AUROC on validation prompts."""


@dataclass(frozen=True)
class Fitted:
    """A detector that was fitted and calibrated on a selection."""

    name: str
    detector: Detector
    calibration: Calibration

    def contender(self, suite: Suite, capture: SetCapturer, *, model: str | None) -> Contender:
        """Return it with its scores of a suite."""
        scores = {
            of.name: self.detector.decision_function(capture.read(of.examples, self.detector.reads))
            for of in suite.sets
        }
        threshold = FrozenThreshold(self.calibration.at(FPR).threshold, FPR)
        platt = (self.calibration.slope, self.calibration.intercept)
        return Contender(self.name, model, scores, (threshold,), platt)


def rivals(num_blocks: int) -> dict[str, tuple[Detector, ...]]:
    """Return unfitted rivals by name, each with the settings that it may choose from."""
    every_layer = LayeredPrototypes.default_reads(num_blocks)
    return {
        "TF-IDF": tuple(Tfidf((Texts(),), c=c) for c in TEXT_PENALTIES),
        "MiniLM": (SentenceEmbedding((Texts(),)),),
        "last-layer LPM": (Prototypes((CaptureSpec((num_blocks - 1,)),)),),
        "MLPM": (LayeredPrototypes(every_layer),),
        "one-layer logistic regression": (
            Linear((CaptureSpec((SINGLE_LAYER,)),), c=SINGLE_PENALTY),
        ),
    }


def fit(
    name: str, settings: Sequence[Detector], selection: Selection, capture: SetCapturer
) -> Fitted:
    """Fit a detector, choose among its settings and calibrate it, on validation prompts.

    Args:
        name: Of the contender.
        settings: Unfitted detectors of the same reads; the best AUROC on validation prompts stays.
        selection: What it is fitted and calibrated on.
        capture: Reads prompts.
    """
    reads = settings[0].reads
    train, val = targets_of(selection.train), targets_of(selection.val)
    of_train, of_val = (capture.read(rows, reads) for rows in (selection.train, selection.val))
    fitted = [detector.fit(of_train, train, seed=0) for detector in settings]
    scored = [(detector.decision_function(of_val), detector) for detector in fitted]
    scores, best = max(scored, key=lambda found: float(roc_auc_score(val.unsafe, found[0])))
    calibration = calibrate(
        scores,
        val.unsafe,
        val.group,
        rates=(FPR,),
        calibrated_on=selection.calibrated_on,
        default_fpr=FPR,
    )
    return Fitted(name, best, calibration)
