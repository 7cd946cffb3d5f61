"""Rebuilds the research collection from its public sources: fetch, convert, check, write.

A set is written only if its content has the committed hash. What could not be built is told by
name and reason; the index and the splits name only what lies in the folder.
"""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demur.core.errors import ConfigError, DataError
from demur.datasets.recipes.collection import (
    Collection,
    Set,
    Table,
    as_lines,
    compress,
    sha256,
)
from demur.datasets.recipes.readers import Files
from demur.datasets.recipes.recipes import RECIPES, Recipe, Source
from demur.workflows.sources import MissingFileError, Sources, replace_file

CACHE = ".sources"
"""The folder beside the sets that holds what was fetched; it marks the folder as a build's."""
UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, EOFError, OSError)
UNREADABLE_TOO = (csv.Error, zlib.error)

Report = Callable[[str, int, int], None]
"""Is told the name of a set, how many sets are done, and of how many."""


@dataclass
class Outcome:
    """What became of each set, by name and in order."""

    built: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    """Lay there already."""
    unlicensed: list[str] = field(default_factory=list)
    without_recipe: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """With the reason."""


@dataclass(frozen=True)
class Builder:
    """Builds a folder that `DemurData` reads.

    Args:
        out: The folder.
        sources: Where the files of the repositories come from.
        collection: Index and tables.
        recipes: By set.
    """

    out: Path
    sources: Sources
    collection: Collection = field(default_factory=Collection)
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: RECIPES)

    def build(self, only: Iterable[str] = (), *, report: Report) -> Outcome:
        """Build sets, then write the index and the splits of all that lie in the folder.

        Args:
            only: Names of sets; none is all.
            report: Is told of progress.

        Raises:
            ConfigError: A name is unknown, the folder is another's, or the network is away.
        """
        chosen = self._chosen(only)
        require_buildable(self.out)
        (self.out / CACHE).mkdir(parents=True, exist_ok=True)
        outcome = Outcome()
        try:
            for num_done, made in enumerate(chosen):
                report(made.name, num_done, len(chosen))
                self._settle(made, outcome)
            report("", len(chosen), len(chosen))
        finally:
            self._write_index()
        return outcome

    def _chosen(self, only: Iterable[str]) -> list[Set]:
        sets = self.collection.sets
        names = list(only) or list(sets)
        unknown = [name for name in names if name not in sets]
        if unknown:
            raise ConfigError(f"there is no set {unknown[0]!r}: expected one of {sorted(sets)}")
        return [sets[name] for name in sets if name in names]

    def _settle(self, made: Set, outcome: Outcome) -> None:
        if not made.is_licensed:
            outcome.unlicensed.append(made.name)
        elif made.name not in self.recipes:
            outcome.without_recipe.append(made.name)
        elif self._lies_there(made):
            outcome.unchanged.append(made.name)
        else:
            try:
                self._make(made)
                outcome.built.append(made.name)
            except DataError as error:
                outcome.refused[made.name] = str(error)

    def _lies_there(self, made: Set) -> bool:
        try:
            content = gzip.decompress((self.out / made.file).read_bytes())
        except (OSError, EOFError, zlib.error):
            return False
        return sha256(content) == made.content_sha256

    def _make(self, made: Set) -> None:
        recipe, table = self.recipes[made.name], self.collection.table(made.name)
        files = self._files(made, recipe, table)
        try:
            candidates = list(recipe.read(files))
        except UNREADABLE + UNREADABLE_TOO as error:  # its text may hold a prompt
            raise DataError(
                f"its source cannot be read ({type(error).__name__}): it differs from the pinned "
                "commit, or the recipe misreads it"
            ) from None
        content = as_lines(table.assemble(candidates))
        if sha256(content) != made.content_sha256:
            raise DataError(
                f"expected content with SHA-256 {made.content_sha256}, found {sha256(content)}"
            )
        replace_file(self.out / made.file, compress(content))

    def _files(self, made: Set, recipe: Recipe, table: Table) -> Files:
        source = recipe.source or Source(made.entry["repo"], made.entry["commit"])
        first: MissingFileError | None = None
        for paths in recipe.alternatives(table.categories):
            try:
                return {path: self.sources.read(source, path) for path in paths}
            except MissingFileError as error:
                first = first or error
        assert first is not None, "a recipe has a list of files"
        raise first

    def _write_index(self) -> None:
        present = [
            made
            for made in self.collection.sets.values()
            if made.name in self.recipes and made.is_licensed and self._lies_there(made)
        ]
        places = [place for made in present for place in self.collection.table(made.name).places()]
        splits = compress(as_lines(places))
        replace_file(self.out / "splits.jsonl.gz", splits)
        content = {
            "format": self.collection.format,
            "splits_file": _described(splits, places),
            "datasets": [{**made.entry, **self._measured(made)} for made in present],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        replace_file(self.out / "index.json", text.encode())

    def _measured(self, made: Set) -> dict[str, object]:
        content = (self.out / made.file).read_bytes()
        return {"sha256": sha256(content), "bytes": len(content)}


def require_buildable(out: Path) -> None:
    """Refuse a folder that holds something other than an earlier build.

    Raises:
        ConfigError: It does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder")
    if out.exists() and any(out.iterdir()) and not (out / CACHE).is_dir():
        raise ConfigError(f"{out} holds something else: name a new or empty folder")


def _described(splits: bytes, places: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    counts: dict[str, Counter[str]] = {}
    small: dict[str, Counter[str]] = {}
    for place in places:
        counts.setdefault(place["split"], Counter())[place["label"]] += 1
        if place.get("small"):
            small.setdefault(place["split"], Counter())[place["label"]] += 1
    return {
        "file": "splits.jsonl.gz",
        "sha256": sha256(splits),
        "bytes": len(splits),
        "counts": _sorted(counts),
        "small_counts": _sorted(small),
    }


def _sorted(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    labels = ("unsafe", "safe")
    return {split: {label: counts[split][label] for label in labels} for split in sorted(counts)}
