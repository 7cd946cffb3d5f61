"""What a study is fitted, chosen and tested on: the collection, files of one's own, or the starter.

The collection has fixed splits. Other prompts are parted by whole groups: 60% to fit, 20% to
choose, 20% to test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets import jsonl, starter
from demur.datasets.demur_data import DemurData
from demur.workflows.fit import hold_out

STARTER = "starter"
INSIDE = "test_id"
"""The test set, and the split of the collection, whose prompts are of the training sources."""
OUTSIDE = ("test_ood", "utility")
BENIGN_POOL, OTHER_LANGUAGES = "alpaca_eval", "mgsm"
"""Sets of the collection whose safe prompts stand against unsafe ones: English, and others."""


@dataclass(frozen=True)
class StudySets:
    """Labelled prompts in their roles."""

    train: list[Example]
    val: list[Example]
    tests: dict[str, list[Example]]
    """By name; `test_id` holds prompts of the training sources."""
    pools: dict[str, str] = field(default_factory=dict)
    """For a set of unsafe prompts only: the set whose safe prompts it is compared with."""

    def __post_init__(self) -> None:
        """Refuse what nothing can be fitted or chosen on.

        Raises:
            DataError: There are no prompts of a label to fit on, or to choose on.
        """
        for role, examples in (("fit", self.train), ("choose", self.val)):
            found = {example.label for example in examples}
            if found != {"unsafe", "safe"}:
                raise DataError(
                    f"the {len(examples)} prompts to {role} on have the labels "
                    f"{sorted(map(str, found))}: give unsafe and safe ones, all labelled"
                )

    @property
    def all(self) -> tuple[list[Example], ...]:
        """Every set: to fit on, to choose on, and the tests."""
        return (self.train, self.val, *self.tests.values())

    def keeping(self, is_kept: Callable[[Example], bool]) -> "StudySets":
        """Return the same sets with some prompts only; a test set that is left empty goes."""
        tests = {name: [e for e in examples if is_kept(e)] for name, examples in self.tests.items()}
        return StudySets(
            [example for example in self.train if is_kept(example)],
            [example for example in self.val if is_kept(example)],
            {name: examples for name, examples in tests.items() if examples},
            self.pools,
        )


def load_study_sets(source: str, *, limit: int | None = None, seed: int = 0) -> StudySets:
    """Return the prompts of a study.

    Args:
        source: A folder that holds the collection, a file or folder of labelled JSON lines, or
            `starter`.
        limit: Most prompts of one source in each role; None takes all.
        seed: Of the draws.

    Raises:
        ConfigError: There is no such file or folder, or it holds no JSON lines.
        DataError: A line is broken.
    """
    path = Path(source).expanduser()
    if (path / "index.json").is_file():
        return _of_collection(DemurData(path), limit=limit, seed=seed)
    examples = starter.load() if source == STARTER else _of_files(path)
    rest, test = hold_out(examples, share=0.2, seed=seed)
    train, val = hold_out(rest, share=0.25, seed=seed)
    train, val, test = (limited(part, limit, seed=seed) for part in (train, val, test))
    return StudySets(train, val, {INSIDE: test})


def limited(examples: Sequence[Example], limit: int | None, *, seed: int) -> list[Example]:
    """Return at most some prompts of each source and label, in order.

    Args:
        examples: Of any sources.
        limit: Most of one source and label; None takes all.
        seed: Of the draw.
    """
    if limit is None:
        return list(examples)
    rows: dict[tuple[str, str], list[int]] = {}
    for row, example in enumerate(examples):
        rows.setdefault((example.source or "", str(example.label)), []).append(row)
    generator = np.random.default_rng(seed)
    kept = [row for of in rows.values() for row in generator.permutation(of)[:limit].tolist()]
    return [examples[row] for row in sorted(kept)]


def _of_files(path: Path) -> list[Example]:
    if path.is_file():
        return jsonl.load(path)
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if not files:
        raise ConfigError(
            f"{path} holds no prompts: expected a file or folder of JSON lines, a folder with the "
            f"collection's index.json, or {STARTER!r}"
        )
    return [example for file in files for example in jsonl.load(file)]


def _of_collection(collection: DemurData, *, limit: int | None, seed: int) -> StudySets:
    """Return the small balanced selection to fit and choose on, and all test sets."""
    roles: dict[str, list[Example]] = {"train": [], "val": [], INSIDE: []}
    tests: dict[str, list[Example]] = {}
    for name in collection.sets:
        for example in collection.load(name, tuple(roles), small=True):
            roles[str(example.split)].append(example)
        outside = limited(collection.load(name, OUTSIDE), limit, seed=seed)
        if outside:
            tests[name] = outside
    train, val, inside = (limited(of_role, limit, seed=seed) for of_role in roles.values())
    pools = {
        name: OTHER_LANGUAGES if _is_foreign(examples) else BENIGN_POOL
        for name, examples in tests.items()
    }
    known = {name: pool for name, pool in pools.items() if pool in tests}
    return StudySets(train, val, {INSIDE: inside, **tests}, known)


def _is_foreign(examples: Sequence[Example]) -> bool:
    """Tell whether most prompts are in other languages than English."""
    return sum(example.language not in (None, "en") for example in examples) > len(examples) / 2
