"""What the loaders of public sets share: reading a set as it lies on the hub, and counting it.

A set comes from the Hugging Face hub, or from a folder with the same files. A loader states what
makes a row unsafe; here rows become examples, and their number is held against the published one,
since a set that was read wrongly still gives plausible scores.
"""

import glob
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
from demur.core.types import Chat

Row = dict[str, Any]

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""Readers by suffix; where a folder holds a file in several formats, the first of these is read."""

FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True)
class Part:
    """Where one split of a set lies, and which columns it must have."""

    repo: str
    revision: str
    split: str
    """As the hub calls it."""
    files: tuple[str, ...]
    """Patterns below a local folder; the first that matches anything is used."""
    columns: tuple[str, ...]
    config: str | None = None
    delimiter: str | None = None
    """Set if the files on the hub are CSV."""
    url: str | None = None
    """A CSV file elsewhere, for a set that is not on the hub as it was published."""


@dataclass(frozen=True)
class Prompt:
    """What a row says."""

    text: str | None
    label: Label
    id: str | None = None
    """None is the number of the row, from 0."""
    group: str | None = None
    category: str | None = None
    kind: str | None = None
    response: str | None = None
    response_label: Label | None = None


@dataclass(frozen=True)
class Expected:
    """The published size of a split."""

    total: int
    unsafe: int | None = None
    """None if only the total is published."""

    def admits(self, found: "Expected") -> bool:
        """Tell whether what was found is what was published."""
        return found.total == self.total and self.unsafe in (None, found.unsafe)

    def __str__(self) -> str:
        if self.unsafe is None:
            return f"{self.total} prompts"
        return f"{self.unsafe} unsafe and {self.total - self.unsafe} safe prompts"


def part_of(name: str, parts: Mapping[str, Part], split: str) -> Part:
    """Return the part that holds a split.

    Raises:
        ConfigError: The set has no such split.
    """
    if split not in parts:
        raise ConfigError(f"{name} has no split {split!r}: expected one of {sorted(parts)}")
    return parts[split]


def read_rows(part: Part, source: Path | None) -> list[Row]:
    """Read the rows of a split, in order.

    Args:
        part: Where they lie.
        source: A folder with the files of the hub, or one file; None is the hub itself.

    Raises:
        ConfigError: There is no such file or folder, or the folder lacks the files of the split.
        DataError: A file cannot be read or lacks a column, or the hub does not answer.
    """
    if source is None:
        return _read_remote(part)
    return [row for path in _local_files(part, source) for row in _read_local(part, path)]


def to_examples(
    name: str,
    split: str,
    rows: Iterable[Row],
    read: Callable[[Row], Prompt | None],
    *,
    part: Part,
    expected: Expected | None = None,
) -> list[Example]:
    """Make examples of the rows; a prompt without text is counted, but left out with a warning.

    Args:
        name: The set, which becomes the examples' source.
        split: The split, which they carry.
        rows: The rows, in order.
        read: Says what a row holds; None leaves it out uncounted.
        part: Where the rows came from, for messages.
        expected: The published counts; None checks none.

    Raises:
        DataError: A row is broken, or the counts are not the published ones.
    """
    where = f"{name}, split {split!r}"
    examples: list[Example] = []
    labels: list[Label] = []
    for number, row in enumerate(rows):
        try:
            prompt = read(row)
            if prompt is None:
                continue
            labels.append(prompt.label)
            if prompt.text is not None and prompt.text.strip():
                examples.append(_example(name, split, number, prompt, prompt.text))
        except DataError as error:
            raise DataError(f"{where}, row {number}: {error}") from error
    found = Expected(len(labels), labels.count("unsafe"))
    if expected is not None and not expected.admits(found):
        raise DataError(
            f"{where}: found {found}, expected {expected}: take the files of "
            f"{part.url or f'{part.repo}, revision {part.revision}'}, or pass check_counts=False "
            "for a part of the set or made-up rows"
        )
    if len(examples) < found.total:
        num_empty = found.total - len(examples)
        warnings.warn(f"{where}: left out {num_empty} prompts without text", stacklevel=3)
    return examples


def text_of(row: Row, column: str) -> str | None:
    """Return a cell's text; None if the cell is empty, null or NaN."""
    value = row[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) or None


def flag_of(row: Row, column: str, *, missing: bool | None = None) -> bool:
    """Return whether a cell is 1 or true.

    Args:
        row: The row.
        column: Its column.
        missing: What an empty cell counts as; None refuses it.

    Raises:
        DataError: The cell is neither.
    """
    text = text_of(row, column)
    if text is None and missing is not None:
        return missing
    flag = FLAGS.get((text or "").lower())
    if flag is None:
        raise DataError(f"{column} is {row[column]!r}: expected 1 or 0, or true or false")
    return flag


def label_of(row: Row, column: str, *, unsafe: str, safe: str) -> Label | None:
    """Return the label that a cell names; None if it is empty.

    Args:
        row: The row.
        column: Its column.
        unsafe: What the set calls unsafe.
        safe: What the set calls safe.

    Raises:
        DataError: The cell holds anything else.
    """
    text = text_of(row, column)
    if text not in (None, unsafe, safe):
        raise DataError(f"{column} is {text!r}: expected {unsafe!r} or {safe!r}")
    if text is None:
        return None
    return "unsafe" if text == unsafe else "safe"


def required(label: Label | None, column: str) -> Label:
    """Return the label of a cell that no row may leave empty.

    Raises:
        DataError: There is none.
    """
    if label is None:
        raise DataError(f"{column} is empty: expected a label in every row")
    return label


def _example(name: str, split: str, number: int, prompt: Prompt, text: str) -> Example:
    return Example(
        id=prompt.id if prompt.id is not None else f"{name}-{split}-{number}",
        chat=Chat.from_text(text),
        label=prompt.label,
        group=prompt.group,
        source=name,
        category=prompt.category,
        kind=prompt.kind,
        split=split,
        language="en",
        response=prompt.response,
        response_label=prompt.response_label,
    )


def _read_remote(part: Part) -> list[Row]:
    options = {} if part.delimiter is None else _csv_options(part.delimiter)
    try:
        if part.url is not None:
            found = datasets.load_dataset("csv", data_files=part.url, split="train", **options)
        else:
            found = datasets.load_dataset(
                part.repo, part.config, split=part.split, revision=part.revision, **options
            )
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"cannot read {part.url or part.repo} ({type(error).__name__}: {error}): check the "
            "network, accept the set's terms on its page and log in (hf auth login), or pass a "
            "folder with its files"
        ) from error
    return _rows(found, part, part.url or part.repo)


def _read_local(part: Part, path: Path) -> list[Row]:
    reader = FORMATS[_suffix(path)]
    options = _csv_options("\t" if _suffix(path) == ".tsv" else ",") if reader == "csv" else {}
    with TemporaryDirectory() as cache:  # a local file needs no second copy in the user's cache
        try:
            found = datasets.load_dataset(
                reader,
                data_files=glob.escape(str(path)),
                split="train",
                cache_dir=cache,
                **options,
            )
        except (DatasetsError, OSError, ValueError) as error:
            reason = error.__cause__ or error
            raise DataError(f"cannot read {path} ({reason}): copy the file anew") from error
        return _rows(found, part, str(path))


def _csv_options(delimiter: str) -> dict[str, Any]:
    """Return options that keep a text such as `None` or `NA` from being read as a missing one."""
    return {"delimiter": delimiter, "keep_default_na": False}


def _rows(found: Any, part: Part, where: str) -> list[Row]:
    missing = [column for column in part.columns if column not in found.column_names]
    if missing:
        raise DataError(
            f"{where} has no column {', '.join(missing)}, only {', '.join(found.column_names)}: "
            "is it the file of another set or version?"
        )
    rows: list[Row] = found.select_columns(list(part.columns)).to_list()
    return rows


def _local_files(part: Part, source: Path) -> list[Path]:
    if source.is_file():
        if _suffix(source) not in FORMATS:
            raise ConfigError(f"{source} is no data file: expected one of {', '.join(FORMATS)}")
        return [source]
    if not source.is_dir():
        raise ConfigError(f"there is no folder or file {source}")
    for pattern in part.files:
        found = sorted(path for path in source.glob(pattern) if _suffix(path) in FORMATS)
        if found:
            readers = {FORMATS[_suffix(path)] for path in found}
            reader = min(readers, key=list(FORMATS.values()).index)
            return [path for path in found if FORMATS[_suffix(path)] == reader]
    raise ConfigError(
        f"{source} holds no file like {' or '.join(part.files)}: expected the files of {part.repo}"
    )


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()
