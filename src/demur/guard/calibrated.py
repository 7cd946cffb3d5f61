"""A detector with its threshold: what turns a score into a verdict."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from demur.core.errors import DataError
from demur.core.heads import CategoryHeads
from demur.core.linear import LinearDetector
from demur.core.protocols import Detector
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout, sigmoid
from demur.core.results import Verdict


@dataclass(frozen=True)
class CalibratedDetector:
    """A fitted detector, its threshold and its probabilities."""

    name: str
    """What verdicts call it."""
    detector: Detector
    """Fitted, and not fitted again while it is in use."""
    threshold: float
    """Scores at or over it are flagged."""
    slope: float
    """probability = sigmoid(slope * score + intercept)."""
    intercept: float
    version: str
    """Of the fitted state; goes into records and headers."""
    heads: CategoryHeads | None = None
    """What categories a prompt belongs to, where the artifact tells them."""

    def __post_init__(self) -> None:
        """Refuse numbers that no score could be compared with: they would pass everything."""
        numbers = {"threshold": self.threshold, "slope": self.slope, "intercept": self.intercept}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise DataError(f"{name} of detector {self.name!r} is {value}: expected a number")

    @cached_property
    def _readout(self) -> LinearReadout | None:
        """The compiled form of a linear detector, so that no request compiles it again."""
        return self.detector.readout() if isinstance(self.detector, LinearDetector) else None

    def verdicts(
        self, readings: Readings, *, has_forged_markers: bool = False
    ) -> tuple[Verdict, ...]:
        """Return a verdict for each prompt.

        Args:
            readings: That hold the detector's reads.
            has_forged_markers: What the verdicts say of all these prompts.

        Raises:
            DataError: A score is not finite.
        """
        scores: Array = (
            self.detector.decision_function(readings)
            if self._readout is None
            else self._readout.score(readings)
        )
        verdicts = [
            self.judge(score, has_forged_markers=has_forged_markers) for score in scores.tolist()
        ]
        if self.heads is not None:
            by_key = self.heads.probabilities(readings)
            unsupported = dict.fromkeys(self.heads.unsupported)
            verdicts = [
                replace(
                    verdict,
                    categories={key: float(p[row]) for key, p in by_key.items()} | unsupported,
                )
                for row, verdict in enumerate(verdicts)
            ]
        return tuple(verdicts)

    def judge(self, score: float, *, has_forged_markers: bool = False) -> Verdict:
        """Return the verdict on a score.

        Raises:
            DataError: The score is not finite.
        """
        if not math.isfinite(score):
            raise DataError(f"the score is {score}: expected a finite number")
        return Verdict(
            detector=self.name,
            score=score,
            probability=sigmoid(self.slope * score + self.intercept),
            threshold=self.threshold,
            flagged=score >= self.threshold,
            has_forged_markers=has_forged_markers,
        )

    def unscored(self, error: str, *, has_forged_markers: bool = False) -> Verdict:
        """Return the verdict on a prompt that could not be scored: it is flagged."""
        return Verdict(
            detector=self.name,
            score=None,
            probability=None,
            threshold=self.threshold,
            flagged=True,
            has_forged_markers=has_forged_markers,
            error=error,
        )
