"""Prompts of your own: JSON lines, plain or gzipped, each with `text` or `messages`."""

from dataclasses import replace
from pathlib import Path

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.datasets.rows import Keep, keep_all, read_rows

__all__ = ["load"]


def load(path: Path, *, keep: Keep = keep_all) -> list[Example]:
    """Return the examples of a file, in order; the file's name is the source of those without one.

    Args:
        path: JSON lines.
        keep: Says by its id which row is wanted.

    Raises:
        ConfigError: There is no such file.
        DataError: A line is broken or holds nothing to score; the message holds its number.
    """
    examples = []
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    for row in read_rows(path, keep=keep):
        if row.example is None:
            raise DataError(f"{path}, line {row.number}: {row.error}")
        examples.append(replace(row.example, source=row.example.source or name))
    return examples
