"""Readings on disk: shards that are written whole, keyed by all that they depend on.

A set's folder holds `manifest.json` and one safetensors file a shard. Shards are of fixed rows, so
an interrupted capture goes on where it stopped, and a second detector never loads the model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from demur.core.artifacts import write_synced
from demur.core.errors import DataError
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read
from demur.core.types import ModelId, Prompt

CAPTURE_VERSION = 1
"""Raised when the states that the capture path yields change."""


@dataclass(frozen=True)
class ShardPlan:
    """Which prompts go into which shard: neighbours in length, so that padding is little."""

    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def by_length(cls, prompts: Sequence[Prompt], *, rows_a_shard: int = 256) -> "ShardPlan":
        """Plan shards over prompts sorted by length."""
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        starts = range(0, len(order), rows_a_shard)
        return cls(tuple(tuple(order[start : start + rows_a_shard]) for start in starts))


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
        arrays = {str(i): readings.pooled(spec) for i, spec in enumerate(self.reads)}
        path = self.shard_path(shard)
        partial = path.with_suffix(".partial")
        try:
            write_synced(partial, to_bytes(arrays))
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
        if self.missing():
            raise DataError(f"{self.path} lacks {len(self.missing())} shards: capture again")
        parts = [self._read(shard) for shard in range(len(self.plan.rows))]
        order = [row for rows in self.plan.rows for row in rows]
        places = sorted(range(len(order)), key=order.__getitem__)
        return Readings.concatenate(parts).take(places)

    def _read(self, shard: int) -> Readings:
        path = self.shard_path(shard)
        try:
            arrays: dict[str, Array] = from_bytes(path.read_bytes())
        except SafetensorError as error:
            raise DataError(f"{path} is damaged ({error}): delete it and capture again") from error
        return Readings({spec: arrays[str(i)] for i, spec in enumerate(self.reads)})


def open_folder(
    root: Path, model_id: ModelId, reads: Sequence[Read], prompts: Sequence[Prompt]
) -> ReadingsFolder:
    """Open (or make) the folder for a set of prompts.

    Args:
        root: Where all sets lie.
        model_id: Part of the key, with dtype and name.
        reads: Pooled captures only.
        prompts: Part of the key, through their tokens and spans.

    Raises:
        DataError: A read is not a pooled capture.
    """
    pooled = tuple(read for read in reads if isinstance(read, CaptureSpec) and read.is_pooled)
    if len(pooled) != len(reads):
        raise DataError("only pooled captures are stored: set pool, or read the last position")
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.token_ids, prompt.spans)).encode())
    key = {
        "model_id": model_id.as_dict(),
        "reads": [spec.as_dict() for spec in pooled],
        "capture_version": CAPTURE_VERSION,
        "prompts": digest.hexdigest(),
        "num_prompts": len(prompts),
    }
    text = json.dumps(key, indent=2, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(folder / "manifest.json", text.encode())
    return ReadingsFolder(folder, pooled, ShardPlan.by_length(prompts))
