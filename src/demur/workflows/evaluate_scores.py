"""Scores the sets of a suite: each set is read once a model, for all detectors of that model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from demur.core.artifacts import Calibration
from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.examples import Example
from demur.core.protocols import Engine, Stream
from demur.core.readings import Array
from demur.core.reads import Read
from demur.core.shared_reads import SharedReads
from demur.core.types import Chat
from demur.guard.calibrated import CalibratedDetector
from demur.guard.loading import open_detector
from demur.workflows.layer_values import Level, layer_values, levels_of
from demur.workflows.suites import EvaluationSet, Suite

News = Callable[[str], None]


def ignore_news(news: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class OpenModel:
    """A model that can be read."""

    engine: Engine
    num_blocks: int
    device: str
    read: Callable[[Sequence[Chat], Sequence[Read]], Stream]
    """Returns the readings of chats in parts, from disk where they were read before."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.engine.model_id.name


@dataclass(frozen=True)
class FrozenThreshold:
    """A threshold that no prompt of the suite had a say in."""

    threshold: float
    """Scores at or over it are flagged."""
    fpr: float | None = None
    """The false-positive rate that it was calibrated for; None for a control, or if it was not."""


@dataclass(frozen=True)
class Contender:
    """A scorer of prompts, with its scores of the suite."""

    name: str
    """Of the detector, or of the control."""
    model: str | None
    """None for a control."""
    scores: Mapping[str, Array]
    """[prompt] of each set; NaN for what the model cannot take."""
    thresholds: tuple[FrozenThreshold, ...] = ()
    """The default one first; none where nothing was calibrated."""
    platt: tuple[float, float] | None = None
    """Slope and intercept of its probabilities, where it has any."""
    version: str = ""
    levels: tuple[Level, ...] = ()
    """The layers whose own share in the score is known."""
    layers: Mapping[str, Array] = field(default_factory=dict)
    """[prompt, level] of each set; empty without levels."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What the detector measured while it scored the suite, such as a cascade's escalation rate."""

    def taking(self, rows: Mapping[str, Array]) -> "Contender":
        """Return it with the scores of some prompts only, by set."""
        return replace(
            self,
            scores={name: self.scores[name][chosen] for name, chosen in rows.items()},
            layers={
                name: self.layers[name][chosen] for name, chosen in rows.items() if self.levels
            },
        )


@dataclass(frozen=True)
class Judge:
    """A detector that fits a model, before it has scored anything."""

    calibrated: CalibratedDetector
    calibration: Calibration

    @property
    def thresholds(self) -> tuple[FrozenThreshold, ...]:
        """Those of its artifact, the default one first; even odds where it has none."""
        if not self.calibration.thresholds:
            return (FrozenThreshold(self.calibration.default_threshold),)
        default = self.calibration.at(self.calibration.default_fpr)
        others = [of for of in self.calibration.thresholds if of is not default]
        return tuple(FrozenThreshold(of.threshold, of.fpr) for of in (default, *others))


def load_judges(
    model: OpenModel, sources: Sequence[str], refused: dict[str, ModelMismatchError]
) -> list[Judge]:
    """Load the detectors that fit a model.

    Args:
        model: That they will read.
        sources: Artifact folders or names; see `load_detector`.
        refused: Takes up those that were fitted on another model.

    Raises:
        ConfigError: There is no such detector, or two have one name.
    """
    judges: list[Judge] = []
    for source in sources:
        try:
            opened = open_detector(source, model.engine)
        except ModelMismatchError as error:
            refused[source] = error
            continue
        judges.append(Judge(opened.calibrated(), opened.artifact.calibration))
    names = [judge.calibrated.name for judge in judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"two detectors have the same name: {names}; rename a folder")
    return judges


def score_suite(
    model: OpenModel, judges: Sequence[Judge], suite: Suite, *, report: News = ignore_news
) -> list[Contender]:
    """Return a model's detectors with their scores of all sets.

    Raises:
        DataError: A detector cannot score a prompt that its model can take.
    """
    scores: list[dict[str, Array]] = [{} for _ in judges]
    layers: list[dict[str, Array]] = [{} for _ in judges]
    for number, of in enumerate(suite.sets, start=1):
        report(f"{model.name}: {of.name} ({number} of {len(suite.sets)})")
        for place, found in enumerate(_score_set(model, judges, of)):
            scores[place][of.name], layers[place][of.name] = found
    return [
        Contender(
            name=judge.calibrated.name,
            model=model.name,
            scores=scores[place],
            thresholds=judge.thresholds,
            platt=(judge.calibrated.slope, judge.calibrated.intercept),
            version=judge.calibrated.version,
            levels=levels_of(judge.calibrated.detector, num_blocks=model.num_blocks),
            layers=layers[place],
            measured=judge.calibrated.detector.measured(),
        )
        for place, judge in enumerate(judges)
    ]


def _score_set(
    model: OpenModel, judges: Sequence[Judge], of: EvaluationSet
) -> list[tuple[Array, Array]]:
    """Return scores [prompt] and values of layers [prompt, level] of each detector."""
    detectors = [judge.calibrated.detector for judge in judges]
    reads = SharedReads.of(
        [read for detector in detectors for read in detector.reads], num_blocks=model.num_blocks
    )
    levels = [len(levels_of(detector, num_blocks=model.num_blocks)) for detector in detectors]
    found = [
        (np.full(len(of.examples), np.nan), np.full((len(of.examples), number), np.nan))
        for number in levels
    ]
    taken = [row for row, example in enumerate(of.examples) if _fits(model.engine, example)]
    if not taken:
        return found
    chats = [of.examples[row].chat for row in taken]
    for rows, readings in model.read(chats, reads.reads):
        places = np.array(taken)[rows]
        for detector, num_levels, (scores, layers) in zip(detectors, levels, found, strict=True):
            own = reads.cut(readings, detector.reads)
            scores[places] = detector.decision_function(own)
            if not np.isfinite(scores[places]).all():
                raise DataError(f"a score of {type(detector).__name__} on {of.name} is not finite")
            if num_levels:
                layers[places] = layer_values(detector, own)
    return found


def _fits(engine: Engine, example: Example) -> bool:
    """Tell whether a model can take a prompt."""
    try:
        engine.render(example.chat)
    except DataError:
        return False
    return True


def controls(suite: Suite, first: Contender) -> list[Contender]:
    """Return what every detector has to beat, and what must know nothing, on the same prompts.

    `length` is the number of characters that the user says last; `always_flag` flags everything;
    `shuffled_labels` has the scores of the first detector in another order, which is as good as
    shuffling the labels.
    """
    length = {
        of.name: np.array([float(len(e.chat.last_user_text)) for e in of.examples])
        for of in suite.sets
    }
    ones = {of.name: np.ones(len(of.examples)) for of in suite.sets}
    together = np.concatenate([first.scores[of.name] for of in suite.sets])
    mixed = np.random.default_rng(0).permutation(together)
    ends = np.cumsum([len(of.examples) for of in suite.sets])[:-1]
    shuffled = dict(zip(ones, np.split(mixed, ends), strict=True))
    return [
        Contender("length", None, length),
        Contender("always_flag", None, ones, (FrozenThreshold(1.0),)),
        Contender("shuffled_labels", None, shuffled, first.thresholds[:1]),
    ]
