"""Reads the files of source repositories: a reader yields candidates, a table chooses among them.

A candidate holds what only the source has: `text`, and where the set has them `response`, `goal`,
`system`, `group` or `meta`. A reader may yield more candidates than there are records: one that no
table names is dropped.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

Candidate = dict[str, Any]
Files = Mapping[str, bytes]
"""Contents by path in the repository."""
Reader = Callable[[Files], Iterator[Candidate]]


def load(path: str, content: bytes) -> Any:
    """Return what a JSON or JSON-lines file holds; lines become a list."""
    if path.endswith(".gz"):
        content = gzip.decompress(content)
    text = content.decode("utf-8-sig")
    if ".jsonl" in PurePosixPath(path).name:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # some repositories call JSON lines .json
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def rows_of(path: str, content: bytes) -> list[list[str]]:
    """Return the rows of a CSV file, the header too."""
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def strings(files: Files) -> Iterator[Candidate]:
    """Take every string that stands as a value in JSON files."""
    for path, content in files.items():
        for text in _strings(load(path, content)):
            yield {"text": text.strip()}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def cells(files: Files) -> Iterator[Candidate]:
    """Take every cell of CSV files."""
    for path, content in files.items():
        for row in rows_of(path, content):
            for cell in row:
                yield {"text": cell.strip()}


def lines(files: Files) -> Iterator[Candidate]:
    """Take every line of text files."""
    for content in files.values():
        for line in content.decode("utf-8-sig").split("\n"):
            yield {"text": line.strip()}


def field(name: str) -> Reader:
    """Return a reader of one field of JSON objects."""

    def read(files: Files) -> Iterator[Candidate]:
        for path, content in files.items():
            for row in load(path, content):
                yield {"text": row[name].strip()}

    return read


def instructions(files: Files) -> Iterator[Candidate]:
    """Join `instruction` and `input`, which may be empty, with a blank line."""
    for path, content in files.items():
        for row in load(path, content):
            for text in joined(row["instruction"], row.get("input") or ""):
                yield {"text": text}


def joined(first: str, second: str) -> tuple[str, str]:
    """Return two parts with a blank line between them: with and without the space around it."""
    return f"{first}\n\n{second}".strip(), f"{first.strip()}\n\n{second.strip()}".strip()


def plain_words(text: str) -> str:
    """Return the letters and digits of a text, lower case, in words."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
