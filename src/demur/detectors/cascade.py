"""A cheap detector for every prompt, and an expensive one for those that the cheap one doubts.

Prompts whose first score lies in a band go to the second detector. A pass that only the second one
reads is run for these prompts alone, since such readings are made when they are asked for; what it
reads of the prefill costs nothing more anyway. `escalation_rate` says how many went.

With `second="compliance"` and `combine="product"` or `"both"` it is the two-stage rule of
SafeSwitch: a prompt is flagged if it is unsafe and the model would comply. Scores are log-odds
then, and neither rule puts a prompt over its first log-odds, so that the second detector is asked
from `low` on only, and `high` is best None: a threshold of the log-odds at `low` or more flags the
same prompts as if all had been asked about.

Paper: McKenzie et al., Detecting High-Stakes Interactions with Activation Probes (2025), arXiv
2506.10805 (a cascade by uncertainty); Constitutional Classifiers++ (2026), arXiv 2601.04603 (the
average of 0.55 and 0.45 of the two logits); SafeSwitch (2025), arXiv 2502.01042 (the product of the
probabilities that a prompt is unsafe and that the model complies; the released code asks that both
are a half or more).

Differs: the threshold of the two-stage rules is calibrated, where the paper's is a half. The band
is given in scores of the first detector. Both detectors are fitted on all training prompts, but a
detector with a pass of its own asks about a few of them only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from demur.core import artifacts, by_name, registry
from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Detector, ReadyDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import Read, read_from_dict

__all__ = ["Cascade"]

Combine = Literal["average", "second", "product", "both"]
Odds = tuple[float, float]
"""A slope and an intercept."""
Source = str | Mapping[str, Any]
"""The folder of an artifact, a method's name, or its `method` and fields."""


@dataclass
class Cascade(ReadyDetector):
    """A second detector inside a band of the first one's score.

    Args:
        reads: The captures among them are those of a first or second detector that is given by its
            method's name alone; what is read follows from the two detectors.
    """

    first: Source = "linear"
    """Judges every prompt: the folder of an artifact, which is kept as it is fitted; a method's
    name, with its fields where they differ, such as `prompted:3`; or an object with `method` and
    the fields."""
    second: Source = "prompted"
    """Judges the prompts in the band; given as the first one is."""
    low: float = -2.0
    """Of the band, in scores of the first detector: from here on the second one is asked."""
    high: float | None = 2.0
    """From here on the first one is sure; None asks the second one however sure it is."""
    combine: Combine = "average"
    """In the band: `average` of both scores, which should be logits then, or the `second` alone;
    the log-odds of the `product` of both probabilities, or the lower log-odds, which reach a
    threshold if `both` do."""
    weight: float = 0.55
    """Of the first score in the average, 0 to 1 (the paper's 0.55)."""
    offset: float = 0.0
    """With `both`: how far over the threshold the second log-odds have to be."""
    first_odds: Odds | None = None
    """With `product` and `both`: what makes log-odds of the first score; None takes the slope and
    intercept of its artifact's probabilities, or the score as it is."""
    second_odds: Odds | None = None
    """The same of the second score."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and make both detectors."""
        if self.combine not in get_args(Combine):
            raise ConfigError(f"combine is {self.combine!r}: expected one of {get_args(Combine)}")
        if self.high is not None and not self.low <= self.high:
            raise ConfigError(f"the band is {self.low} to {self.high}: expected low <= high")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"weight is {self.weight}: expected 0 to 1")
        self._parts = {
            name: _Part.of(getattr(self, name), self.reads) for name in ("first", "second")
        }
        for name, part in self._parts.items():
            if part.detector.watches != self.watches:
                raise ConfigError(
                    f"the {name} detector of the cascade watches a {part.detector.watches}: "
                    f"expected one that watches a {self.watches}"
                )
        # Names and folders become what they stand for: an artifact has to hold it all.
        self.first, self.second = (part.described() for part in self._parts.values())
        own = [part.odds if self._has_odds else None for part in self._parts.values()]
        self.first_odds = _odds(self.first_odds, own[0])
        self.second_odds = _odds(self.second_odds, own[1])
        self.reads = tuple(
            dict.fromkeys(read for part in self._parts.values() for read in part.detector.reads)
        )
        self.num_scored_ = self.num_escalated_ = 0

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        """Return what a linear detector reads, and the first question to the model."""
        linear: type[Detector] = registry.load("detectors", "linear")
        return cls(linear.default_reads(num_blocks, layers=layers)).reads

    @property
    def _has_odds(self) -> bool:
        """True for the two-stage rules, which combine log-odds."""
        return self.combine in ("product", "both")

    @property
    def escalation_rate(self) -> float | None:
        """The share of the prompts scored since the fit that the second detector judged."""
        return self.num_escalated_ / self.num_scored_ if self.num_scored_ else None

    def measured(self) -> dict[str, float]:
        """Return the escalation rate, if anything was scored."""
        rate = self.escalation_rate
        return {} if rate is None else {"escalation_rate": rate}

    def ready(self) -> Self:
        """Take the detectors as they are, and return self.

        Raises:
            ConfigError: One of them is no artifact, and cannot judge without a fit.
        """
        for name, part in self._parts.items():
            if isinstance(part.detector, ReadyDetector) and not part.is_given:
                part.detector.ready()
            elif not part.is_given:
                raise ConfigError(
                    f"the {name} detector of the cascade, {part.method!r}, has to be fitted: name "
                    "the folder of an artifact, or run `demur fit --detector cascade`"
                )
        return self

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit the detectors that came unfitted, and return self.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        for part in self._parts.values():
            if not part.is_given:
                part.detector.fit(readings, targets, seed=seed)
        self.num_scored_ = self.num_escalated_ = 0
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt]: the first detector's, outside of the band."""
        first = self._parts["first"].detector.decision_function(readings)
        high = np.inf if self.high is None else self.high
        rows = np.flatnonzero((first >= self.low) & (first < high))
        scores = self._comparable(first, self.first_odds).copy()
        self.num_scored_ += len(scores)
        self.num_escalated_ += len(rows)
        if rows.size:
            second = self._parts["second"].detector.decision_function(readings.take(rows))
            scores[rows] = self._combined(scores[rows], self._comparable(second, self.second_odds))
        return scores

    def _comparable(self, scores: Array, odds: Odds | None) -> Array:
        """Return scores [prompt] as they are combined: as log-odds in the two-stage rules."""
        if odds is None or not self._has_odds:
            return scores
        return odds[0] * scores + odds[1]

    def _combined(self, first: Array, second: Array) -> Array:
        """Return the scores [prompt] of prompts that both detectors judged."""
        if self.combine == "product":
            return product_logit(first, second)
        if self.combine == "both":
            lower: Array = np.minimum(first, second - self.offset)
            return lower
        share = self.weight if self.combine == "average" else 0.0
        return share * first + (1 - share) * second

    def state(self) -> dict[str, Array]:
        """Return the arrays of both detectors, as `first.NAME` and `second.NAME`."""
        return {
            f"{name}.{key}": array
            for name, part in self._parts.items()
            for key, array in part.detector.state().items()
        }

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over the arrays of both detectors and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        unknown = [key for key in state if key.partition(".")[0] not in self._parts]
        if unknown:
            raise DataError(f"the state holds {unknown}: expected arrays of first and second")
        for name, part in self._parts.items():
            own = {
                key.removeprefix(f"{name}."): array
                for key, array in state.items()
                if key.startswith(f"{name}.")
            }
            part.detector.load_state(own)
        return self


def product_logit(first: Array, second: Array) -> Array:
    """Return the log-odds of two things together, where each is known by its log-odds.

    The odds are 1 / (exp(-a) + exp(-b) + exp(-a - b)), which neither overflows nor loses digits.

    >>> round(float(product_logit(np.array(0.0), np.array(0.0))), 4)
    -1.0986
    """
    together: Array = -np.logaddexp(np.logaddexp(-first, -second), -first - second)
    return together


def _odds(given: Odds | None, own: Odds | None) -> Odds | None:
    """Return what makes log-odds of a detector's score: what was given, or its own.

    Raises:
        ConfigError: What was given is not a positive slope and an intercept.
    """
    if given is None:
        return own
    if len(given) != 2 or not given[0] > 0:
        raise ConfigError(f"odds are {given!r}: expected a slope over 0 and an intercept")
    return (float(given[0]), float(given[1]))


@dataclass(frozen=True)
class _Part:
    """One of the two detectors."""

    method: str
    detector: Detector
    is_given: bool
    """Fitted already, and not to be fitted again."""
    odds: Odds | None = None
    """Of its artifact's probabilities."""

    @classmethod
    def of(cls, source: Source, reads: tuple[Read, ...]) -> "_Part":
        """Make a detector of what the operator gave.

        Raises:
            ConfigError: There is no such artifact or method, or the fields are not the method's.
        """
        if isinstance(source, Mapping):
            fields = dict(source)
            method = str(fields.pop("method", ""))
            if isinstance(fields.get("reads"), list):
                reads = tuple(read_from_dict(read) for read in fields.pop("reads"))
            return cls(method, by_name.make(method, fields, reads=reads), is_given=False)
        if Path(source).is_dir():
            artifact = artifacts.read(Path(source))
            found = artifact.calibration
            odds = (found.slope, found.intercept)
            return cls(artifact.method, artifacts.restore(artifact), is_given=True, odds=odds)
        if not by_name.is_line(source):
            raise ConfigError(
                f"there is no detector {source!r}: expected an artifact's folder, or one of "
                f"{sorted(registry.methods('detectors'))}, with its fields where they differ"
            )
        method, fields = by_name.parse(source)
        return cls(method, by_name.make(method, fields, reads=reads), is_given=False)

    def described(self) -> dict[str, Any]:
        """Return the method and its fields, for JSON."""
        return {"method": self.method, **self.detector.hyper_parameters()}
