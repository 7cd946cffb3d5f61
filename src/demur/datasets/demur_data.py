"""The research collection in the folder `DEMUR_DATA`: many public sets with fixed splits.

The folder holds `index.json`, `splits.jsonl.gz` and one `NAME.jsonl.gz` a set. It is never shipped:
some of its sets may only be measured on. `SetInfo.may_ship` tells which a released detector may be
trained on.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.datasets.splits import Splits

__all__ = ["DemurData"]

VARIABLE = "DEMUR_DATA"


@dataclass(frozen=True)
class SetInfo:
    """What the index says of a set."""

    name: str
    file: str
    kind: str
    """`unsafe`, `benign`, `mixed` or `utility`."""
    repo: str
    licence: str
    may_ship: bool
    """A licence is stated, and it allows commercial use."""


class DemurData:
    """Reads the collection.

    Args:
        folder: None is the folder that `DEMUR_DATA` names.

    Raises:
        ConfigError: No folder was named, or it holds no collection.
    """

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get(VARIABLE)
        if folder is None and not named:
            raise ConfigError(f"{VARIABLE} is not set: name the folder that holds index.json in it")
        self.folder = folder if folder is not None else Path(str(named)).expanduser()
        if not (self.folder / "index.json").is_file():
            raise ConfigError(f"{self.folder} holds no index.json: set {VARIABLE} to the folder")

    @cached_property
    def sets(self) -> dict[str, SetInfo]:
        """The sets by name, in the order of the index."""
        index = json.loads((self.folder / "index.json").read_bytes())
        return {
            entry["name"]: SetInfo(
                name=entry["name"],
                file=entry["file"],
                kind=entry["kind"],
                repo=entry["repo"],
                licence=entry["licence"],
                may_ship=bool(entry["licence_stated"]) and not entry["non_commercial"],
            )
            for entry in index["datasets"]
        }

    @cached_property
    def splits(self) -> Splits:
        """The fixed splits."""
        return Splits.read(self.folder / "splits.jsonl.gz")

    def load(
        self,
        name: str,
        splits: Sequence[str],
        *,
        small: bool = False,
        optional: bool = False,
    ) -> list[Example]:
        """Return the prompts of one set that stand in some splits.

        Args:
            name: A set of the index.
            splits: Such as `train`, `val`, `test_id`, `test_ood` or `utility`.
            small: Only the small balanced selection.
            optional: Also the rows marked optional.

        Raises:
            ConfigError: There is no such set.
        """
        if name not in self.sets:
            raise ConfigError(f"there is no set {name!r}: expected one of {sorted(self.sets)}")
        path = self.folder / self.sets[name].file
        return self.splits.select(path, splits, small=small, optional=optional)
