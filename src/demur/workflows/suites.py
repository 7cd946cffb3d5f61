"""Suites: what detectors are evaluated on, set by set.

A suite is a selection of the research collection (its splits `test_id`, `test_ood` and `utility`),
any folder of labelled JSON lines, each file a set, or the starter set. A set of unsafe prompts
alone is compared with safe prompts of other sets, its pool.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets import jsonl, starter
from demur.datasets.demur_data import DemurData
from demur.workflows.study_sets import BENIGN_POOL, OTHER_LANGUAGES, limited

STARTER, COLLECTION = "starter", "demur_data"
SMALL, HARMFUL, ORDINARY = "small", "harmful", "ordinary"
SELECTIONS = {
    COLLECTION: ("test_id", "test_ood", "utility"),
    SMALL: ("test_id",),
    HARMFUL: ("test_ood", "utility"),
    ORDINARY: ("utility",),
}
"""Suites of the collection, with their splits. `small` is the balanced selection; `harmful` holds
the sets with unsafe prompts, and those whose safe prompts they are compared with."""
SPLITS = {
    "test_id": "sources that a detector of the collection was fitted on, in other groups",
    "test_ood": "development: has been looked at",
    "utility": "safe prompts only: everyday tasks and benchmarks",
}
"""The splits of the collection that are evaluated, and what they are."""
OWN_SPLIT = "test"
CLUSTERS = dict.fromkeys(("jailbreakbench", "jbb_artifacts", "tense_attacks"), "jailbreakbench")
"""Sets that rest on the same requests as others."""
SOFT_LABELS = {
    "aart": "made by a model from templates; some requests are harmless",
    "do_not_answer": "misinformation and human-chatbox questions are often mild",
    "harmbench": "its copyright requests are no hazard in the usual sense",
    "openai_moderation": "texts to moderate rather than requests; unknown labels count as safe",
    "safety_tuned_llamas": "some requests are mild",
    "tense_attacks": "read literally, some are harmless questions about history",
}
"""What to know of the labels of public sets."""


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled prompts of one set."""

    name: str
    split: str
    examples: tuple[Example, ...]
    pool: tuple[str, ...] = ()
    """The sets whose safe prompts it is compared with; none if it holds both labels, or only safe
    prompts."""
    is_english: bool = True
    """Most of its prompts are, or none says what they are."""
    cluster: str = ""
    """Sets of one cluster rest on the same requests, and count as one in means; empty: it is the
    only one of its own."""

    @property
    def labels(self) -> frozenset[str]:
        """The labels that it holds."""
        return frozenset(str(example.label) for example in self.examples)


@dataclass(frozen=True)
class Suite:
    """Sets with names of their own, in order."""

    name: str
    sets: tuple[EvaluationSet, ...]
    splits: Mapping[str, str] = field(default_factory=dict)
    """What is to be known of a split."""

    @property
    def labels(self) -> frozenset[str]:
        """The labels that its sets hold."""
        return frozenset[str]().union(*(of.labels for of in self.sets))

    @property
    def clusters(self) -> tuple[tuple[str, ...], ...]:
        """The names of the sets of each split that rest on the same requests."""
        found: dict[tuple[str, str], list[str]] = {}
        for of in self.sets:
            found.setdefault((of.split, of.cluster or of.name), []).append(of.name)
        return tuple(tuple(names) for names in found.values() if len(names) > 1)

    def keeping(self, is_kept: Callable[[str, int], bool]) -> "Suite":
        """Return the suite with some prompts only; a set that is left empty goes.

        Args:
            is_kept: Tells it of a prompt by the name of its set and its row.
        """
        sets = []
        for of in self.sets:
            kept = (e for row, e in enumerate(of.examples) if is_kept(of.name, row))
            sets.append(replace(of, examples=tuple(kept)))
        return replace(self, sets=tuple(of for of in sets if of.examples))


def load_suite(source: str, *, limit: int | None = None) -> Suite:
    """Return a suite.

    Args:
        source: A name of `SELECTIONS`, which reads the collection that `DEMUR_DATA` names; a folder
            that holds a collection; a file or folder of labelled JSON lines; or `starter`.
        limit: Most prompts of one set and label; None takes all.

    Raises:
        ConfigError: There is no such suite.
        DataError: A line is broken, a prompt has no label, or there are no prompts.
    """
    path = Path(source).expanduser()
    if source in SELECTIONS:
        suite = _of_collection(DemurData(), source, limit=limit)
    elif (path / "index.json").is_file():
        suite = _of_collection(DemurData(path), COLLECTION, limit=limit)
    else:
        parts = _of_starter() if source == STARTER else _of_files(path)
        suite = Suite(path.name, _with_pools(_sets(parts, OWN_SPLIT, limit=limit), {}))
    if not suite.sets:
        raise DataError(f"the suite {source} holds no prompts")
    return suite


def _of_collection(collection: DemurData, selection: str, *, limit: int | None) -> Suite:
    sets: list[EvaluationSet] = []
    for split in SELECTIONS[selection]:
        parts = {
            name: collection.load(name, (split,), small=selection == SMALL)
            for name in collection.sets
        }
        sets += _sets(parts, split, limit=limit)
    found = _with_pools(sets, {True: BENIGN_POOL, False: OTHER_LANGUAGES})
    if selection == HARMFUL:
        kept = {name for of in found if "unsafe" in of.labels for name in (of.name, *of.pool)}
        found = tuple(of for of in found if of.name in kept)
    return Suite(selection, found, {split: SPLITS[split] for split in SELECTIONS[selection]})


def _of_starter() -> dict[str, list[Example]]:
    """Return its validation prompts, English ones apart: nothing else of it was held back."""
    examples = starter.load("val")
    return {
        f"{STARTER}_english": [e for e in examples if _is_english(e)],
        f"{STARTER}_others": [e for e in examples if not _is_english(e)],
    }


def _of_files(path: Path) -> dict[str, list[Example]]:
    files = [path] if path.is_file() else sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if not files:
        raise ConfigError(
            f"there is no suite {str(path)!r}: expected a file or folder of labelled JSON lines, a "
            f"folder with the collection's index.json, or one of {[STARTER, *SELECTIONS]}"
        )
    parts: dict[str, list[Example]] = {}
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        if name in parts:
            raise ConfigError(f"{path} holds {name} twice, plain and gzipped: leave one")
        parts[name] = jsonl.load(file)
    return parts


def _sets(
    parts: Mapping[str, list[Example]], split: str, *, limit: int | None
) -> list[EvaluationSet]:
    sets = []
    for name, examples in parts.items():
        unlabelled = [example.id for example in examples if example.label is None]
        if unlabelled:
            raise DataError(
                f"{len(unlabelled)} prompts of {name} have no label (the first is "
                f"{unlabelled[0]!r}): each needs label 'unsafe' or 'safe'"
            )
        chosen = tuple(limited(examples, limit, seed=0))
        if chosen:
            num_english = sum(_is_english(example) for example in chosen)
            english = num_english >= len(chosen) / 2
            cluster = CLUSTERS.get(name, "")
            sets.append(EvaluationSet(name, split, chosen, is_english=english, cluster=cluster))
    return sets


def _is_english(example: Example) -> bool:
    return example.language in (None, "en")


def _with_pools(
    sets: Sequence[EvaluationSet], pools: Mapping[bool, str]
) -> tuple[EvaluationSet, ...]:
    """Give each set of unsafe prompts alone its pool: the named one, or all safe prompts."""
    names = {of.name for of in sets}
    every = tuple(of.name for of in sets if "safe" in of.labels)
    found = []
    for of in sets:
        named = pools.get(of.is_english, "")
        pool = (named,) if named in names else every
        found.append(replace(of, pool=pool) if of.labels == {"unsafe"} else of)
    return tuple(found)
