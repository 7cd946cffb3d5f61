"""What every study is made of: prompts and readings in; a table, plots and findings out.

A study is a dataclass whose fields are its parameters, with `run(inputs) -> StudyResult`. It reads
no model itself: `StudyInputs.read` gives readings, from disk where they were read before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.protocols import Detector, Engine
from demur.core.readings import Readings
from demur.core.reads import Read

IN_DISTRIBUTION = "test_id"
"""The name of the test set whose prompts come from the sources of the training prompts."""

Cell = str | int | float | None
Row = Mapping[str, Cell]


class Reader(Protocol):
    """Reads prompts with the model that is studied."""

    def __call__(self, examples: Sequence[Example], reads: Sequence[Read], /) -> Readings:
        """Return the readings of examples, in order."""


def ignore_news(news: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Judge:
    """A fitted detector with the threshold that it is used with."""

    name: str
    detector: Detector
    threshold: float
    """Scores at or over it are flagged."""
    spread: float = 1.0
    """Standard deviation of its scores on validation prompts: the unit in which different judges
    can be compared, over 0."""


@dataclass(frozen=True)
class StudyInputs:
    """What a study works on."""

    read: Reader
    num_blocks: int
    """Of the model."""
    train: Sequence[Example]
    val: Sequence[Example]
    """Of the training sources, in other groups: whatever is chosen is chosen on these."""
    tests: Mapping[str, Sequence[Example]]
    """By name; nothing is chosen on these."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """For a test set of unsafe prompts only: the set whose safe prompts it is compared with. Where
    none is named, it is the in-distribution set."""
    seeds: tuple[int, ...] = (0,)
    report: Callable[[str], None] = ignore_news
    """Called with a line of progress now and then."""
    engine: Engine | None = None
    """For studies that need replies, or the model itself."""
    judges: tuple[Judge, ...] = ()
    """Detectors that were fitted before, for studies of these."""


@dataclass(frozen=True)
class Series:
    """One line, or one bar at each x, of a plot."""

    label: str
    x: tuple[float, ...] | tuple[str, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] = ()
    """Half the length of an error bar at each x; empty draws none."""


@dataclass(frozen=True)
class Plot:
    """A plot of series over a common axis."""

    name: str
    """Of its file, without the suffix."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["line", "bar"] = "line"
    is_log_x: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A matrix of values with names for its rows and columns."""

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """`values[row][column]`; None stays blank."""


@dataclass(frozen=True)
class StudyResult:
    """A study's answer."""

    title: str
    question: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    plots: tuple[Plot | HeatMap, ...]
    findings: tuple[str, ...]
    """Sentences that the numbers make."""

    def __post_init__(self) -> None:
        """Refuse rows of other columns, and numbers that are not finite.

        Raises:
            DataError: There is such a row or number.
        """
        for number, row in enumerate(self.rows):
            if tuple(row) != self.columns:
                raise DataError(f"row {number} has {list(row)}: expected {list(self.columns)}")
            for column, cell in row.items():
                if isinstance(cell, float) and not math.isfinite(cell):
                    raise DataError(f"row {number}, {column} is {cell}: expected None")


class Study(Protocol):
    """A question with its parameters."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return the answer; the same inputs give the same answer."""


def shown(cell: Cell) -> str:
    """Return a cell as text: numbers to three places, nothing as a dash.

    >>> shown(0.98765), shown(12), shown(None)
    ('0.988', '12', '-')
    """
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
