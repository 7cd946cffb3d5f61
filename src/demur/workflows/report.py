"""The report of an evaluation: one page with tables and charts, which needs no network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demur.workflows import report_charts as charts
from demur.workflows.evaluate_measures import RATES
from demur.workflows.evaluate_results import (
    Average,
    Estimate,
    Evaluation,
    ScorerResult,
    SetResult,
)
from demur.workflows.sources import replace_file

REPORT = "report.html"
TEMPLATE = "report.html.jinja"
WORST = 5
"""Sets that are named as the worst of each detector."""
SET_COLUMNS = (
    "AUROC",
    *(f"recall at {100 * fpr:g}% FPR" for fpr in RATES),
    "unsafe caught",
    "safe flagged",
    "F1",
    "calibration error",
)
LANGUAGES = {"english": "English", "other": "other languages", "mixed": "all languages"}


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    value: str
    interval: str = ""
    difference: str = ""
    verdict: str = ""
    """`better` or `worse` than the first detector, where the interval of the difference says so."""


ABSENT = Cell("–")


@dataclass(frozen=True)
class Table:
    """The means over the sets of a split in some languages."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]
    """Each with the scorer, whether it is a control, and its cells."""


@dataclass(frozen=True)
class SetRows:
    """The numbers of a set: a row a detector."""

    name: str
    about: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """Each with the detector and its cells."""


@dataclass(frozen=True)
class SetTable:
    """The numbers of all sets."""

    columns: tuple[str, ...]
    sets: tuple[SetRows, ...]


@dataclass(frozen=True)
class Figure:
    """A chart with its words."""

    title: str
    spec: charts.Spec


@dataclass(frozen=True)
class Section:
    """Charts that belong together."""

    title: str
    text: str
    figures: tuple[Figure, ...]
    is_wide: bool = False
    """Each chart takes the whole width."""


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write `report.html` into a folder, whole or not at all."""
    replace_file(out / REPORT, render(evaluation).encode())


def render(evaluation: Evaluation) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        tables=summary(evaluation),
        worst=[(of.label, worst(of)) for of in evaluation.detectors],
        sections=[section for section in sections(evaluation) if section.figures],
        set_table=set_table(evaluation),
        script=charts.script(),
    )


def summary(evaluation: Evaluation) -> list[Table]:
    """Return a table for each split and languages: a row a scorer, a column a measure."""
    first = evaluation.scorers[0]
    tables = []
    for split, languages in dict.fromkeys((of.split, of.languages) for of in first.averages):
        of_first = first.means(split, languages)
        rows = []
        for scorer in evaluation.scorers:
            found = scorer.means(split, languages)
            cells = tuple(cell(found[key]) if key in found else ABSENT for key in of_first)
            rows.append((scorer.label, scorer.model is None, cells))
        columns = tuple(f"{heading(*key)} ({_sets(of.num_sets)})" for key, of in of_first.items())
        title = f"{split}, {LANGUAGES[languages]}"
        tables.append(Table(title, evaluation.splits.get(split, ""), columns, tuple(rows)))
    return tables


def _sets(number: int) -> str:
    return "1 set" if number == 1 else f"{number} sets"


def heading(measure: str, fpr: float | None) -> str:
    """Return the name of a column."""
    if measure == "recall_at_fpr":
        return f"recall at {100 * (fpr or 0):g}% FPR"
    names = {"auroc": "AUROC", "recall": "unsafe caught", "flagged_safe": "safe flagged"}
    return names[measure]


def cell(average: Average) -> Cell:
    """Return a mean as text, with its interval and the difference to the first detector."""
    is_share = average.measure != "auroc"
    difference, verdict = "", ""
    if average.difference is not None:
        difference = _number(average.difference.value, is_share, sign=True)
        if average.difference.interval is not None:
            low, high = average.difference.interval
            ends = [_number(end, is_share, sign=True) for end in (low, high)]
            difference += f" [{', '.join(ends)}]"
            if low > 0 or high < 0:
                verdict = "better" if (low > 0) != (average.measure == "flagged_safe") else "worse"
    mean = _cell(average.mean, is_share=is_share)
    return replace(mean, difference=difference, verdict=verdict)


def _number(value: float, is_share: bool, *, sign: bool = False) -> str:
    number = f"{100 * value:+.1f}" if is_share else f"{value:+.4f}"
    number = number if sign else number.removeprefix("+")
    return f"{number}%" if is_share and not sign else number


def shown_interval(estimate: Estimate, *, is_share: bool) -> str:
    """Return an interval as text; empty where there is none."""
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"[{_number(low, is_share)}, {_number(high, is_share)}]"


def worst(scorer: ScorerResult) -> dict[str, list[tuple[str, str, str]]]:
    """Return the sets of which a detector flags most safe prompts, and catches fewest unsafe ones.

    Each with its name, rate and interval.
    """
    found = {}
    for measure, is_bad in (("flagged_safe", True), ("recall", False)):
        rated = [
            (of.name, rate)
            for of in scorer.sets
            if (rate := charts.rate_of(of, measure)) is not None
        ]
        rated.sort(key=lambda of: of[1].value, reverse=is_bad)
        found[measure] = [
            (name, _number(rate.value, True), shown_interval(rate, is_share=True))
            for name, rate in rated[:WORST]
        ]
    return found


def sections(evaluation: Evaluation) -> list[Section]:
    """Return the charts."""
    detectors = evaluation.detectors
    drawn = [of for of in evaluation.scorers if of.model is not None or of.name == "length"]
    splits = [of.split for of in detectors[0].splits]
    return [
        Section(
            "ROC at low false-positive rates",
            "All prompts of a split together. Steps never overstate recall; dots are the frozen "
            "thresholds, at the left edge where they flag less than 0.1% of the safe prompts.",
            tuple(Figure(split, charts.roc(drawn, split)) for split in splits),
        ),
        Section(
            "Unsafe prompts caught, by set",
            "At the frozen threshold, the least caught first. Lines are 95% Wilson intervals, on "
            "as many prompts as the groups are worth.",
            _figures({"": charts.caught(detectors)}),
            is_wide=True,
        ),
        Section(
            "Safe prompts flagged, by set",
            "At the frozen threshold, the most flagged first.",
            _figures({"": charts.flagged(detectors)}),
            is_wide=True,
        ),
        Section(
            "How scores are spread",
            "Shares of each label; the dashed line is the frozen threshold. The outermost bars "
            "hold what lies beyond them.",
            tuple(
                Figure(f"{scorer.label}: {histogram.split}", charts.spread(scorer, histogram))
                for scorer in detectors
                for histogram in scorer.curves.histograms
            ),
        ),
        Section(
            "Layers",
            "How well each layer's own share in the score (of layered methods, its own log-odds) "
            "tells the prompts of a split apart. Weights were fitted together, so a layer that is "
            "poor alone may still add something.",
            _figures({split: charts.layers(detectors, split) for split in splits}),
        ),
        Section(
            "Calibration",
            "What comes of predicted probabilities, at even odds of the two labels, in bins of "
            "equal mass.",
            _figures({split: charts.reliability(detectors, split) for split in splits}),
        ),
    ]


def _figures(specs: Mapping[str, charts.Spec | None]) -> tuple[Figure, ...]:
    return tuple(Figure(title, spec) for title, spec in specs.items() if spec is not None)


def set_table(evaluation: Evaluation) -> SetTable:
    """Return the numbers of each set, the worst of the first detector first.

    That is by AUROC, and where there is none, by the share of safe prompts that are flagged.
    Columns that are empty in all sets are left out.
    """
    first = evaluation.detectors[0].sets
    numbers = [[_cells(of) for of in scorer.sets] for scorer in evaluation.detectors]
    held = [
        column
        for column in range(len(SET_COLUMNS))
        if any(cells[column] != ABSENT for of in numbers for cells in of)
    ]
    rows = []
    for place in sorted(range(len(first)), key=lambda place: _goodness(first[place])):
        of_set = (
            (scorer.label, tuple(cells[place][column] for column in held))
            for scorer, cells in zip(evaluation.detectors, numbers, strict=True)
        )
        rows.append(SetRows(first[place].name, _about(first[place]), tuple(of_set)))
    return SetTable(tuple(SET_COLUMNS[column] for column in held), tuple(rows))


def _goodness(of: SetResult) -> tuple[bool, float]:
    if of.auroc is not None:
        return False, of.auroc.value
    flagged = charts.rate_of(of, "flagged_safe")
    return True, -flagged.value if flagged is not None else 0.0


def _about(of: SetResult) -> tuple[str, ...]:
    pool = ", ".join(of.pool) if len(of.pool) <= 2 else f"{len(of.pool)} sets"
    return (
        f"{of.split}, {LANGUAGES[of.languages]}",
        f"{of.num_unsafe} unsafe, {of.num_safe} safe, {of.num_groups} groups",
        *([f"against {of.num_pool} safe of {pool}"] if pool else []),
    )


def _cells(of: SetResult) -> tuple[Cell, ...]:
    calibration = None
    if of.calibration_error is not None:
        calibration = Estimate(of.calibration_error, None)
    return (
        _cell(of.auroc, is_share=False),
        *(_cell(estimate, is_share=True) for estimate in of.recall_at_fpr.values()),
        _cell(charts.rate_of(of, "recall"), is_share=True),
        _cell(charts.rate_of(of, "flagged_safe"), is_share=True),
        _cell(of.f1, is_share=False),
        _cell(calibration, is_share=False),
    )


def _cell(estimate: Estimate | None, *, is_share: bool) -> Cell:
    if estimate is None:
        return ABSENT
    return Cell(_number(estimate.value, is_share), shown_interval(estimate, is_share=is_share))
