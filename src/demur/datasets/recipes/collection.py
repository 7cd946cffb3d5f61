"""The index and the tables of the collection, and how a set is assembled.

A table's first line says which fields a record has, in order, which of them are the same for all,
and which make up its key. Each further line is a record, in order: the key, the fields that the
source does not give, and its place in the splits. A key is the start of the SHA-256 of the texts.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from demur.core.errors import DataError
from demur.datasets.recipes.readers import Candidate

FOLDER = Path(__file__).parent
KEY_LENGTH = 12
"""Hex digits. Fifty thousand records of one set collide with probability 5e-6."""
PLACE_FIELDS = ("small", "optional", "why")
NUM_NAMED = 5
"""How many missing records a message names."""


def as_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return records as the canonical JSON lines that the hashes are of."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def compress(content: bytes) -> bytes:
    """Compress so that the same content gives the same bytes."""
    return gzip.compress(content, compresslevel=9, mtime=0)


def sha256(content: bytes) -> str:
    """Return the hash in hex."""
    return hashlib.sha256(content).hexdigest()


def key_of(record: Mapping[str, Any], key: Sequence[str]) -> str:
    """Return what tells a record from the others of its set."""
    return sha256("\x1f".join(record[name] for name in key).encode())[:KEY_LENGTH]


@dataclass(frozen=True)
class Set:
    """What is known of a set before any download."""

    entry: Mapping[str, Any]
    """Its entry in `index.json`, without the hash and the size of the compressed file."""
    content_sha256: str
    """Hash of the uncompressed JSON lines; gzip itself differs from one zlib to the next."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.entry["name"])

    @property
    def file(self) -> str:
        """Its file's name."""
        return str(self.entry["file"])

    @property
    def is_licensed(self) -> bool:
        """A licence is stated in its repository."""
        return bool(self.entry["licence_stated"])


@dataclass(frozen=True)
class Table:
    """Which records a set has, without their texts."""

    name: str
    file: str
    fields: tuple[str, ...]
    key: tuple[str, ...]
    constants: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path, *, file: str) -> "Table":
        """Read a table; `file` is the name of the set's file."""
        lines = gzip.decompress(path.read_bytes()).splitlines()
        head, *rows = (json.loads(line) for line in lines)
        name = path.name.removesuffix(".jsonl.gz")
        return cls(name, file, tuple(head["fields"]), tuple(head["key"]), head["all"], tuple(rows))

    @property
    def categories(self) -> set[str]:
        """The categories of its records."""
        return {row.get("category", self.constants.get("category")) for row in self.rows}

    def record_id(self, index: int) -> str:
        """Return the id of the record in a row."""
        return f"{self.name}-{index:05d}"

    def assemble(self, candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
        """Choose, order and label candidates.

        Raises:
            DataError: A record is not among them; the message names it by id.
        """
        wanted = {row["key"] for row in self.rows}
        found: dict[str, Candidate] = {}
        for candidate in candidates:
            key = key_of(candidate, self.key)
            if key in wanted:
                found.setdefault(key, candidate)
        missing = [self.record_id(i) for i, row in enumerate(self.rows) if row["key"] not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.rows)} records are not in its source (the first: "
                f"{', '.join(missing[:NUM_NAMED])}): the source differs from the pinned commit, "
                "or the recipe misreads it"
            )
        return [self._record(i, found[row["key"]]) for i, row in enumerate(self.rows)]

    def _record(self, index: int, candidate: Candidate) -> dict[str, Any]:
        known = {**candidate, **self.constants, **self.rows[index], "id": self.record_id(index)}
        return {name: known[name] for name in self.fields if name in known}

    def places(self) -> Iterator[dict[str, Any]]:
        """Yield the set's lines of the split file."""
        for index, row in enumerate(self.rows):
            known = {**self.constants, **row}
            place = {
                "id": self.record_id(index),
                "file": self.file,
                "label": known["label"],
                "split": known["place"],
            }
            yield place | {name: row[name] for name in PLACE_FIELDS if name in row}


@dataclass(frozen=True)
class Collection:
    """All sets, with and without a recipe, as `index.json` and the tables of a folder name them."""

    folder: Path = FOLDER

    @cached_property
    def _index(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "index.json").read_bytes())
        return content

    @property
    def format(self) -> str:
        """What a record is, in words."""
        return str(self._index["format"])

    @cached_property
    def sets(self) -> dict[str, Set]:
        """The sets by name, in order."""
        return {
            entry["name"]: Set(
                {key: value for key, value in entry.items() if key != "content_sha256"},
                entry["content_sha256"],
            )
            for entry in self._index["datasets"]
        }

    def table(self, name: str) -> Table:
        """Return a set's table."""
        path = self.folder / "tables" / f"{name}.jsonl.gz"
        return Table.read(path, file=self.sets[name].file)
