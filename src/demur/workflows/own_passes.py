"""Keeps the answers of passes of their own on disk: a guard model reads a chat once.

There is one file of JSON lines a model and question, a line a chat. Lines are appended as the
passes are run, so an interrupted run goes on where it stopped, and other sets share the file.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from demur.core.readings import Array
from demur.core.reads import OwnPass
from demur.core.types import Chat
from demur.modeling.own_pass import OwnPasses

OWN_PASS_VERSION = 1
"""Raised when the values that a pass yields change."""
CHATS_A_WRITE = 16


class StoredPasses:
    """Runs the passes that are not on disk yet.

    Args:
        passes: Runs them.
        root: Where their values are kept.
    """

    def __init__(self, passes: OwnPasses, root: Path) -> None:
        self._passes = passes
        self._root = root

    def values_of(self, read: OwnPass, chats: Sequence[Chat]) -> Array:
        """Return the log-probabilities [chat, label] of a read, float64.

        Raises:
            ConfigError: The model cannot be loaded, or the labels are not its answers.
            DataError: A chat cannot be rendered or is longer than the model's context.
        """
        path = self.path(read)
        known = _known(path, num_labels=len(read.labels))
        by_key = {chat.sha256: chat for chat in chats}
        missing = [key for key in by_key if key not in known]
        for start in range(0, len(missing), CHATS_A_WRITE):
            keys = missing[start : start + CHATS_A_WRITE]
            values = self._passes.values_of(read, [by_key[key] for key in keys]).tolist()
            _append(path, zip(keys, values, strict=True))
            known.update(zip(keys, values, strict=True))
        return np.array([known[chat.sha256] for chat in chats]).reshape(len(chats), -1)

    def path(self, read: OwnPass) -> Path:
        """Return the file of a model and question."""
        depends_on = {"version": OWN_PASS_VERSION, **self._passes.depends_on(read)}
        text = json.dumps(depends_on, sort_keys=True)
        return self._root / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.jsonl"


def _known(path: Path, *, num_labels: int) -> dict[str, list[float]]:
    """Return the values in a file by chat; a line that was cut off does not count."""
    known: dict[str, list[float]] = {}
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
            key, values = str(row["chat"]), [float(value) for value in row["values"]]
        except (ValueError, KeyError, TypeError):
            continue
        if len(values) == num_labels:
            known[key] = values
    return known


def _append(path: Path, rows: Iterable[tuple[str, list[float]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"chat": key, "values": values}) for key, values in rows]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")  # a line of its own after one that was cut off
