"""Fits each detector once a seed, on another part of the training prompts each time.

Most fits have no chance in them: what differs from seed to seed is then the prompts. All detectors
are fitted on the same part, so that differences between them can be paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.errors import ConfigError
from demur.core.readings import Array
from demur.core.reads import Read
from demur.metrics.auroc import auroc
from demur.studies._contenders import Contender, Pool, placing, score_tests
from demur.studies._measures import Difference, mean, spread, threshold_at
from demur.studies._study import Cell, Row, StudyInputs

SHARE = 0.8
"""Of the training prompts of each label that one seed draws."""
COLUMNS = (
    "val_auroc",
    "test_auroc",
    "test_auroc_sd",
    "test_recall",
    "outside_auroc",
    "outside_auroc_sd",
    "outside_recall",
    "safe_sets_flagged",
)
"""The columns of `Repeated.cells`."""


@dataclass(frozen=True)
class Repeated:
    """What one detector makes of the prompts, fitted once a seed."""

    contender: Contender
    of_seeds: tuple[Row, ...]
    """`val_auroc` and the columns of `placing`, of each seed."""

    def values(self, measure: str) -> list[float | None]:
        """Return a measure of each seed."""
        cells = (row[measure] for row in self.of_seeds)
        return [None if cell is None else float(cell) for cell in cells]

    def mean(self, measure: str) -> float | None:
        """Return the mean of a measure over the seeds."""
        return mean(self.values(measure))

    def cells(self) -> dict[str, Cell]:
        """Return means, and standard deviations of the AUROCs on the tests."""
        return {column: self._cell(column) for column in COLUMNS}

    def _cell(self, column: str) -> float | None:
        measure = column.removesuffix("_sd")
        if measure == column:
            return self.mean(measure)
        known = [value for value in self.values(measure) if value is not None]
        return spread(known) if known else None

    def minus(self, other: "Repeated", measure: str) -> Difference | None:
        """Return how much higher this one's measure is, seed by seed."""
        return Difference.of(self.values(measure), other.values(measure))


def repeat(
    inputs: StudyInputs,
    contenders: Sequence[Contender],
    reads: Sequence[Read],
    *,
    share: float = SHARE,
) -> list[Repeated]:
    """Fit detectors once a seed, and place each on the tests.

    Args:
        inputs: With the seeds.
        contenders: What is fitted.
        reads: What is read of each prompt; the detectors' own reads are cut from it.
        share: Of the training prompts of each label that are drawn, over 0 to 1.

    Returns:
        One for each contender.

    Raises:
        ConfigError: The share is out of range.
    """
    train = Pool.read(inputs, inputs.train, reads)
    val = Pool.read(inputs, inputs.val, reads)
    detectors = []
    for seed in inputs.seeds:
        inputs.report(f"fitting {len(contenders)} detectors, seed {seed}")
        drawn = train.take(part_of(train.unsafe, share=share, seed=seed))
        detectors += [drawn.fit(contender, seed=seed) for contender in contenders]
    on_val = [val.score(detector) for detector in detectors]
    tests = score_tests(inputs, detectors, reads)
    rows: list[Row] = [
        {
            "val_auroc": auroc(scores, val.unsafe),
            **placing(tests, number, threshold=threshold_at(scores[~val.unsafe])),
        }
        for number, scores in enumerate(on_val)
    ]
    step = len(contenders)
    return [
        Repeated(contender, tuple(rows[place::step])) for place, contender in enumerate(contenders)
    ]


def part_of(unsafe: Array, *, share: float, seed: int) -> Array:
    """Return the rows of a part that holds the same share of each label, in order.

    Args:
        unsafe: [prompt].
        share: Over 0 to 1.
        seed: Of the draw.

    Raises:
        ConfigError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}: expected over 0 to 1")
    generator = np.random.default_rng(seed)
    kept = []
    for label in (False, True):
        rows = generator.permutation(np.flatnonzero(unsafe == label))
        kept.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(kept))


def judged_by(found: Sequence[Repeated]) -> str:
    """Return the measure that findings compare by: outside AUROC where there are outside sets."""
    is_known = found[0].mean("outside_auroc") is not None
    return "outside_auroc" if is_known else "test_auroc"


def best_of(found: Sequence[Repeated], measure: str) -> Repeated:
    """Return the one with the highest mean of a measure; what is not known is the least."""
    return max(found, key=lambda of: of.mean(measure) or 0.0)
