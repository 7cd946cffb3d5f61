"""Numbers of prompts that are kept on disk, so that a benchmark which was stopped goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demur.core.folders import write_synced
from demur.core.readings import Array

AT_ONCE = 20
"""Prompts after which the file is written."""


@dataclass(frozen=True)
class KeptNumbers:
    """The numbers of one way of measuring, a few a prompt.

    Args:
        path: The file; its name says what they depend on beside the prompt.
    """

    path: Path

    def of(
        self, keys: Sequence[str], measure: Callable[[list[int]], Sequence[Sequence[float]]]
    ) -> Array:
        """Return the numbers of prompts, [prompt, number], from disk where they are known.

        Args:
            keys: Name the prompts.
            measure: Takes the places of some keys, and returns the numbers of each.
        """
        known: dict[str, list[float]] = (
            json.loads(self.path.read_bytes()) if self.path.is_file() else {}
        )
        places = {key: place for place, key in enumerate(keys) if key not in known}
        missing = list(places.values())
        for start in range(0, len(missing), AT_ONCE):
            chosen = missing[start : start + AT_ONCE]
            for place, numbers in zip(chosen, measure(chosen), strict=True):
                known[keys[place]] = [float(number) for number in numbers]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            write_synced(partial, json.dumps(known).encode())
            partial.replace(self.path)
        return np.array([known[key] for key in keys])
