"""Fixed splits in a file of their own: lines with `id`, `file`, `split`, `small` and `optional`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets import jsonl
from demur.datasets.rows import read_objects


@dataclass(frozen=True)
class Place:
    """Where a split file puts a prompt."""

    split: str
    is_small: bool
    """Part of the small balanced selection."""
    is_optional: bool


@dataclass(frozen=True)
class Splits:
    """The places of prompts, by file name and id."""

    path: Path
    places: dict[tuple[str, str], Place]

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(file for file, _ in self.places)

    @classmethod
    def read(cls, path: Path) -> "Splits":
        """Read a split file.

        Raises:
            ConfigError: There is no such file.
            DataError: A line is broken, or places a prompt twice.
        """
        places: dict[tuple[str, str], Place] = {}
        for number, fields in read_objects(path):
            key = _texts(fields, ("file", "id"), path, number)
            (split,) = _texts(fields, ("split",), path, number)
            if key in places:
                raise DataError(f"{path}, line {number}: {key[1]!r} of {key[0]} was placed before")
            small, optional = bool(fields.get("small")), bool(fields.get("optional"))
            places[key[0], key[1]] = Place(split, small, optional)
        return cls(path, places)

    def select(
        self,
        path: Path,
        splits: Iterable[str],
        *,
        small: bool = False,
        optional: bool = False,
    ) -> list[Example]:
        """Return the prompts of a file that stand in some splits, each with its split set.

        Args:
            path: JSON lines; its name is what the split file calls it.
            splits: The names of the splits.
            small: Only the small selection.
            optional: Also the rows marked optional.

        Raises:
            ConfigError: The split file does not know the file.
            DataError: A prompt has no place, or a line is broken.
        """
        if path.name not in self._files:
            raise ConfigError(f"{self.path} places no prompt of {path.name}: is it another file's?")
        wanted = set(splits)

        def is_chosen(row_id: str) -> bool:
            place = self.places.get((path.name, row_id))
            if place is None:
                raise DataError(f"{self.path} has no place for {row_id!r} of {path.name}")
            kept = place.split in wanted and (place.is_small or not small)
            return kept and (optional or not place.is_optional)

        return [
            replace(example, split=self.places[path.name, example.id].split)
            for example in jsonl.load(path, keep=is_chosen)
        ]


@dataclass(frozen=True)
class TrainAndVal:
    """What a detector is fitted on, and what it is calibrated on."""

    train: list[Example]
    val: list[Example]
    unparted: list[Example] = field(default_factory=list)
    """Of splits that do not say which of the two a prompt is for."""


def apply_splits(
    data: Sequence[Path],
    splits_path: Path,
    *,
    small: bool = False,
    optional: bool = False,
    unparted: Sequence[str] = (),
) -> TrainAndVal:
    """Return the prompts of `train` and `val`; those of other splits are not kept.

    Args:
        data: Files of JSON lines.
        splits_path: The split file.
        small: Only the small selection.
        optional: Also the rows marked optional.
        unparted: Splits that are kept beside them.

    Raises:
        ConfigError: A file is missing or unknown to the split file.
        DataError: A line is broken, or a prompt has no place.
    """
    splits = Splits.read(splits_path)
    chosen = [
        example
        for path in data
        for example in splits.select(
            path, ("train", "val", *unparted), small=small, optional=optional
        )
    ]
    return TrainAndVal(
        train=[example for example in chosen if example.split == "train"],
        val=[example for example in chosen if example.split == "val"],
        unparted=[example for example in chosen if example.split in unparted],
    )


def _texts(
    fields: dict[str, Any], names: Sequence[str], path: Path, number: int
) -> tuple[str, ...]:
    values = tuple(fields.get(name) for name in names)
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise DataError(f"{path}, line {number}: {name} is {value!r}: expected a text")
    return values  # type: ignore[return-value]  # checked above
