"""What an evaluation found: typed, without NaN, and ready for JSON; never a text of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Interval = tuple[float, float]
Languages = Literal["english", "other", "mixed"]
"""Of a set, what most of its prompts are in; of a split, `mixed` where its sets differ."""
Measure = Literal["auroc", "recall_at_fpr", "recall", "flagged_safe", "f1"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    interval: Interval | None
    """None where the draws do not give one."""


@dataclass(frozen=True)
class AtThreshold:
    """What a frozen threshold does on one set; its intervals are Wilson's."""

    fpr: float | None
    """The rate that it was calibrated for; None for a control, or if it never was."""
    threshold: float
    recall: Estimate | None
    """Share of unsafe prompts that are flagged; None without any."""
    flagged_safe: Estimate | None
    """Share of safe prompts that are flagged: the realised false-positive rate."""


@dataclass(frozen=True)
class SetResult:
    """What one scorer makes of one set, or of all prompts of a split together."""

    name: str
    split: str
    languages: Languages
    num_unsafe: int
    num_safe: int
    num_groups: int
    pool: tuple[str, ...]
    """The sets whose safe prompts stand against it in `auroc` and `recall_at_fpr`."""
    num_pool: int
    auroc: Estimate | None
    recall_at_fpr: Mapping[str, Estimate | None]
    """By rate, with the threshold placed on the safe prompts of the comparison itself."""
    at_thresholds: tuple[AtThreshold, ...]
    """The default threshold first."""
    f1: Estimate | None
    """At the default threshold; None without both labels."""
    calibration_error: float | None
    """At even odds; None without both labels, or without probabilities."""


@dataclass(frozen=True)
class Average:
    """The mean of a measure over sets, each counting once; English and other sets apart."""

    split: str
    languages: Languages
    measure: Measure
    fpr: float | None
    """Of `recall_at_fpr`, or what the default threshold was calibrated for."""
    num_sets: int
    """Those that rest on the same requests count as one."""
    mean: Estimate
    difference: Estimate | None
    """To the first detector, paired: both judge the same draws of the same prompts."""

    @property
    def column(self) -> tuple[Measure, float | None]:
        """What it is compared with other scorers by: frozen thresholds have no common rate."""
        return self.measure, self.fpr if self.measure == "recall_at_fpr" else None


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve of all prompts of a split."""

    split: str
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Histogram:
    """How the scores of a split are spread; shares of each label sum to one."""

    split: str
    edges: tuple[float, ...]
    safe: tuple[float, ...]
    """Empty where there are none."""
    unsafe: tuple[float, ...]


@dataclass(frozen=True)
class ReliabilityBins:
    """Predicted probabilities of a split, and what came of them, at even odds."""

    split: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    mass: tuple[float, ...]


@dataclass(frozen=True)
class LayerPoint:
    """How well a layer by itself tells the prompts of a split apart."""

    split: str
    read: str
    layer: int
    auroc: float


@dataclass(frozen=True)
class Curves:
    """What is drawn of one scorer."""

    roc: tuple[RocCurve, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    reliability: tuple[ReliabilityBins, ...] = ()
    layers: tuple[LayerPoint, ...] = ()


@dataclass(frozen=True)
class ScorerResult:
    """All that was found of one detector on one model, or of a control."""

    name: str
    label: str
    """What tells it apart from the others."""
    model: str | None
    """None for a control."""
    version: str
    default_threshold: float | None
    sets: tuple[SetResult, ...]
    splits: tuple[SetResult, ...]
    """All prompts of a split together, for splits that hold both labels."""
    averages: tuple[Average, ...]
    curves: Curves
    measured: Mapping[str, float] = field(default_factory=dict)
    """What the detector measured while it scored, such as a cascade's escalation rate."""

    def means(self, split: str, languages: str) -> dict[tuple[Measure, float | None], Average]:
        """Return the means over the sets of a split in some languages, by column."""
        return {
            of.column: of for of in self.averages if (of.split, of.languages) == (split, languages)
        }


@dataclass(frozen=True)
class ModelResult:
    """A model that was read."""

    name: str
    identity: Mapping[str, str]
    device: str


@dataclass(frozen=True)
class Evaluation:
    """What `demur evaluate` writes."""

    suite: str
    splits: Mapping[str, str]
    """What is to be known of a split."""
    num_prompts: int
    num_left_out: int
    """Prompts that one of the models could not take; no scorer counts them."""
    num_draws: int
    """Of the bootstrap."""
    soft_labels: Mapping[str, str]
    """What is to be known of the labels of a set."""
    clusters: tuple[tuple[str, ...], ...]
    """Sets that rest on the same requests, and count as one in means."""
    models: tuple[ModelResult, ...]
    scorers: tuple[ScorerResult, ...]
    """Detectors as given, model by model, then the controls."""
    machine: Mapping[str, object]
    about: Mapping[str, object] = field(default_factory=dict)
    """The options."""

    @property
    def detectors(self) -> tuple[ScorerResult, ...]:
        """The scorers that are no controls."""
        return tuple(scorer for scorer in self.scorers if scorer.model is not None)
