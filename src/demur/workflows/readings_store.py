"""Readings on disk: shards that are written whole, keyed by all that they depend on.

A set's folder holds `manifest.json` and one safetensors file a shard. Shards are of fixed rows, so
an interrupted capture goes on where it stopped, and a second detector never loads the model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from demur.core.errors import DataError
from demur.core.folders import write_synced
from demur.core.protocols import whole
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.types import ModelId, Prompt

CAPTURE_VERSION = 2
"""Raised when the states that the capture path yields change."""
TOKENS_A_SHARD = 65536
"""An interrupted capture loses less than a shard."""


@dataclass(frozen=True)
class ShardPlan:
    """Which prompts go into which shard: neighbours in length."""

    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def by_length(cls, prompts: Sequence[Prompt], *, rows_a_shard: int = 256) -> "ShardPlan":
        """Plan shards over prompts sorted by length."""
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        shards: list[list[int]] = []
        tokens = 0
        for row in order:
            tokens += len(prompts[row])
            if not shards or len(shards[-1]) == rows_a_shard or tokens > TOKENS_A_SHARD:
                shards.append([])
                tokens = len(prompts[row])
            shards[-1].append(row)
        return cls(tuple(map(tuple, shards)))


@dataclass(frozen=True)
class ReadingsFolder:
    """The readings of one set of prompts, by one model."""

    path: Path
    reads: tuple[CaptureSpec, ...]
    plan: ShardPlan

    def shard_path(self, shard: int) -> Path:
        """Return the place of a shard."""
        return self.path / f"shard-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """Return the shards that are not on disk yet."""
        return [s for s in range(len(self.plan.rows)) if not self.shard_path(s).is_file()]

    def write(self, shard: int, readings: Readings) -> None:
        """Write a shard whole or not at all."""
        path = self.shard_path(shard)
        partial = path.with_suffix(".partial")
        try:
            write_synced(partial, as_bytes(self.reads, readings))
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def write_rows(self, ids: Sequence[str]) -> None:
        """Write `rows.jsonl`: for each prompt, in order, its id, shard and row in the shard."""
        places = {
            row: (shard, place)
            for shard, rows in enumerate(self.plan.rows)
            for place, row in enumerate(rows)
        }
        lines = [
            json.dumps({"id": name, "shard": places[row][0], "row": places[row][1]})
            for row, name in enumerate(ids)
        ]
        write_synced(self.path / "rows.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def load(self) -> Readings:
        """Return all readings, in the order of the prompts.

        Raises:
            DataError: A shard is missing or damaged.
        """
        return whole(self.parts())

    def parts(self) -> Iterator[tuple[Array, Readings]]:
        """Yield the readings a shard at a time, each with the rows of its prompts.

        Raises:
            DataError: A shard is missing or damaged.
        """
        if self.missing():
            raise DataError(f"{self.path} lacks {len(self.missing())} shards: capture again")
        for shard, rows in enumerate(self.plan.rows):
            yield np.array(rows), self._read(shard)

    def _read(self, shard: int) -> Readings:
        path = self.shard_path(shard)
        try:
            return readings_of(self.reads, path.read_bytes())
        except SafetensorError as error:
            raise DataError(f"{path} is damaged ({error}): delete it and capture again") from error


def as_bytes(reads: Sequence[CaptureSpec], readings: Readings) -> bytes:
    """Return the content of a shard's file."""
    arrays: dict[str, Array] = {}
    for number, spec in enumerate(reads):
        if spec.is_pooled:
            arrays[str(number)] = readings.pooled(spec)
        else:
            states = readings.ragged(spec)
            arrays[str(number)] = np.concatenate(states, axis=1)
            arrays[f"{number}.lengths"] = np.array([state.shape[1] for state in states])
    return to_bytes(arrays)


def readings_of(reads: Sequence[CaptureSpec], content: bytes) -> Readings:
    """Return the readings that `as_bytes` wrote.

    Raises:
        SafetensorError: The content is damaged.
    """
    arrays: dict[str, Array] = from_bytes(content)
    values: dict[Read, Values] = {}
    for number, spec in enumerate(reads):
        states = arrays[str(number)]
        if spec.is_pooled:
            values[spec] = states
        else:
            ends = np.cumsum(arrays[f"{number}.lengths"])[:-1]
            values[spec] = tuple(np.split(states, ends, axis=1))
    return Readings(values)


def open_folder(
    root: Path, model_id: ModelId, reads: Sequence[CaptureSpec], prompts: Sequence[Prompt]
) -> ReadingsFolder:
    """Open (or make) the folder for a set of prompts.

    Args:
        root: Where all sets lie.
        model_id: Part of the key, with dtype and name.
        reads: What is captured.
        prompts: Part of the key, through their tokens and spans.
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.token_ids, prompt.spans)).encode())
    key = {
        "model_id": model_id.as_dict(),
        "reads": [spec.as_dict() for spec in reads],
        "capture_version": CAPTURE_VERSION,
        "prompts": digest.hexdigest(),
        "num_prompts": len(prompts),
    }
    text = json.dumps(key, indent=2, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(folder / "manifest.json", text.encode())
    return ReadingsFolder(folder, tuple(reads), ShardPlan.by_length(prompts))
