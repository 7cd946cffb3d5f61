"""A paper's table beside ours: F1 at one half and benign accuracy, on the sets that are at hand."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from demur.core.errors import ConfigError
from demur.core.protocols import Detector
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, middle_layer
from demur.metrics.auroc import auroc
from demur.metrics.f1 import f1
from demur.studies._contenders import Contender, Pool, Scored, every_layer, score_tests
from demur.studies._measures import mean
from demur.studies._study import Cell, Plot, Row, Series, StudyInputs, StudyResult

Paper = Literal["lpm", "mlpm"]
PAPERS_PATH = Path(__file__).with_name("papers.toml")
ALWAYS_FLAG = "always flag"


@dataclass(frozen=True)
class Reproduction:
    """One paper's main table."""

    paper: Paper
    model: str
    """Whose states are read."""
    trained_on: str
    """In words."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Sets that are not at hand, and why."""
    notes: tuple[str, ...] = ()
    """How sets differ from the paper's."""

    def __post_init__(self) -> None:
        """Refuse a paper that is not known.

        Raises:
            ConfigError: It is none of `Paper`.
        """
        if self.paper not in get_args(Paper):
            raise ConfigError(f"there is no paper {self.paper!r}: expected {get_args(Paper)}")

    @cached_property
    def published(self) -> Mapping[str, Any]:
        """The paper's numbers."""
        known: Mapping[str, Any] = tomllib.loads(PAPERS_PATH.read_text(encoding="utf-8"))
        return {"harmful": known["harmful"], "benign": known["benign"], **known[self.paper]}

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return the paper's rows and ours; tests that are none of the paper's are left alone."""
        final_norm = CaptureSpec((-1,), site="final_norm")
        reads = (*every_layer(inputs.num_blocks), final_norm)
        contenders = _contenders(self.paper, inputs.num_blocks, final_norm)
        inputs.report(f"fitting {len(contenders)} detectors")
        train = Pool.read(inputs, inputs.train, reads)
        detectors = [train.fit(contender, seed=inputs.seeds[0]) for contender in contenders]
        tests = self._tests(inputs, detectors, reads)
        harmful = [name for name in self.published["harmful"] if name in tests]
        benign = [name for name in self.published["benign"] if name in tests]
        if not harmful:
            raise ConfigError(
                f"none of the paper's harmful sets is at hand ({self.published['harmful']}): give "
                "a folder with the collection, or the publishers' files"
            )
        columns = Columns(tuple(harmful), tuple(benign))
        ours = [_our_row(columns, tests, number, of) for number, of in enumerate(contenders)]
        always = {
            name: _percent(f1(np.ones(len(t.unsafe)), t.unsafe, threshold=0.0))
            for name, t in tests.items()
        }
        never_passed = dict.fromkeys(benign, 0.0)
        ours.append(columns.row("ours", ALWAYS_FLAG, scores=always, accuracies=never_passed))
        theirs = [self._published_row(columns, row) for row in self.published["rows"]]
        rows = (*theirs, *ours)
        return StudyResult(
            title=f"Reproduction: {self.published['title']}",
            question=f"How do the paper's detectors do on {self.model}, beside what it reports? F1 "
            "of the unsafe label at one half and accuracy on benign sets, in percent.",
            columns=columns.names,
            rows=rows,
            plots=(_bars(rows, columns),),
            findings=self._findings(rows),
        )

    def _tests(
        self, inputs: StudyInputs, detectors: Sequence[Detector], reads: Any
    ) -> dict[str, Scored]:
        names = [*self.published["harmful"], *self.published["benign"]]
        wanted = {name: inputs.tests[name] for name in names if name in inputs.tests}
        of_paper = StudyInputs(
            read=inputs.read,
            num_blocks=inputs.num_blocks,
            train=inputs.train,
            val=inputs.val,
            tests=wanted,
            report=inputs.report,
        )
        return {scored.name: scored for scored in score_tests(of_paper, detectors, reads)}

    def _published_row(self, columns: "Columns", row: Mapping[str, Any]) -> Row:
        scores = dict(zip(self.published["harmful"], row.get("f1", []), strict=False))
        found = columns.row("paper", row["backbone"], scores=scores, tag=row["tag"])
        return {**found, "mean_of_eight": row["mean"], "benign_accuracy": row.get("benign")}

    def _findings(self, rows: Sequence[Row]) -> tuple[str, ...]:
        best = max(
            (row for row in rows if row["from"] == "ours" and row["detector"] != ALWAYS_FLAG),
            key=lambda row: float(row["mean_f1"] or 0),
        )
        return (
            f"Ours, highest mean F1 over the harmful sets at hand: {best['detector']}, "
            f"{float(best['mean_f1'] or 0):.2f}.",
            *(f"Layers in the paper: {line}" for line in self.published["layers"]),
            *(f"Sample sizes in the paper: {line}" for line in self.published["sample_size"]),
            f"Deviation: the model is {self.model}.",
            f"Deviation: fitted on {self.trained_on}; the paper fits on the 86,759 prompts of "
            "WildGuardMix.",
            *(f"Deviation: {line}" for line in self.published["deviations"]),
            *(f"Deviation: {line}" for line in self.notes),
            *(f"Missing: {label} ({why})." for label, why in self.missing.items()),
        )


@dataclass(frozen=True)
class Columns:
    """The table's columns for the sets at hand."""

    harmful: tuple[str, ...]
    benign: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All columns in order."""
        sets = (*self.harmful, "mean_f1", "mean_of_eight", "mean_auroc", *self.benign)
        return ("from", "detector", "tag", *sets, "benign_accuracy")

    def row(
        self,
        origin: str,
        detector: str,
        *,
        scores: Mapping[str, float | None],
        tag: str = "",
        accuracies: Mapping[str, float] | None = None,
        aurocs: Mapping[str, float | None] | None = None,
    ) -> Row:
        """Return a row; means are over the sets at hand, and only where all of them are known.

        Args:
            origin: `ours` or `paper`.
            detector: Or the paper's backbone.
            scores: F1 by set.
            tag: Where the paper's number was found.
            accuracies: By benign set.
            aurocs: By harmful set.
        """
        cells: dict[str, Cell] = {"from": origin, "detector": detector, "tag": tag}
        cells |= {name: scores.get(name) for name in self.harmful}
        is_whole = all(name in scores for name in self.harmful)
        cells["mean_f1"] = mean([scores[name] for name in self.harmful]) if is_whole else None
        cells["mean_of_eight"] = None
        cells["mean_auroc"] = mean([(aurocs or {}).get(name) for name in self.harmful])
        of_benign = {name: (accuracies or {}).get(name) for name in self.benign}
        cells |= of_benign
        cells["benign_accuracy"] = mean(list(of_benign.values()))
        return cells


def _contenders(paper: Paper, num_blocks: int, final_norm: CaptureSpec) -> list[Contender]:
    last = Contender("LPM, last layer after the norm", "prototypes", reads=(final_norm,))
    middle = Contender("LPM, middle layer", "prototypes", middle_layer(num_blocks))
    if paper == "lpm":
        before = Contender("LPM, last layer before the norm", "prototypes", (num_blocks - 1,))
        return [last, before, middle, Contender("nearest mean, middle layer", "nearest_mean")]
    vote = Contender("vote over layers", "layer_vote", midpoint=0.5)
    return [Contender("MLPM", "layered_prototypes"), vote, middle, last]


def _our_row(
    columns: Columns, tests: Mapping[str, Scored], number: int, contender: Contender
) -> Row:
    """Return F1 and accuracy in percent, and AUROC, of one detector."""
    at = contender.midpoint
    scores: dict[str, Array] = {name: of.scores[number] for name, of in tests.items()}
    return columns.row(
        "ours",
        contender.label,
        scores={
            name: _percent(f1(scores[name], of.unsafe, threshold=at)) for name, of in tests.items()
        },
        accuracies={name: 100 * float((scores[name] <= at).mean()) for name in tests},
        aurocs={name: auroc(scores[name], of.unsafe) for name, of in tests.items()},
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _bars(rows: Sequence[Row], columns: Columns) -> Plot:
    series = []
    for row in rows:
        known = [name for name in columns.harmful if row[name] is not None]
        if known:
            label = f"{row['from']}: {row['detector']}"
            series.append(Series(label, tuple(known), tuple(float(row[n] or 0) for n in known)))
    return Plot("f1", "F1 at one half", "", "F1, percent", tuple(series), kind="bar")
