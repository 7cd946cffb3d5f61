"""Output files that survive an interruption: lines go to `G.partial`, which is renamed at the end.

Beside it lies a manifest of what the run depends on. A run with the same manifest goes on after
the last whole line; another one is refused rather than mixed in.
"""

import json
import os
from collections.abc import Mapping
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Self

from demur.core.errors import ConfigError
from demur.core.folders import write_synced


class ResumableOutput:
    """A JSON-lines file in the making; use it as a context manager.

    Args:
        path: Where the finished file will be.
        manifest: Hashes and options that decide the content; plain JSON values.

    Raises:
        ConfigError: A partial file of another run lies there, or the path is a folder.
    """

    def __init__(self, path: Path, manifest: Mapping[str, object]) -> None:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: name a file for the output")
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._manifest_path = path.with_name(f"{path.name}.partial.json")
        self.num_done = self._lines_done(json.loads(json.dumps(manifest)))
        """Lines that an earlier run wrote."""
        self._file: BufferedWriter | None = None

    def _lines_done(self, manifest: Mapping[str, object]) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._partial.exists():
            write_synced(
                self._manifest_path, json.dumps(manifest, indent=2, sort_keys=True).encode()
            )
            return 0
        self._refuse_another_run(manifest)
        content = self._partial.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a torn last line is written again
        os.truncate(self._partial, len(whole))
        return whole.count(b"\n")

    def _refuse_another_run(self, manifest: Mapping[str, object]) -> None:
        try:
            earlier = json.loads(self._manifest_path.read_bytes())
        except (FileNotFoundError, ValueError):
            earlier = {}
        keys = {*earlier, *manifest}
        differing = sorted(key for key in keys if earlier.get(key) != manifest.get(key))
        if differing:
            raise ConfigError(
                f"{self._partial} belongs to another run (it differs in {', '.join(differing)}): "
                "delete it, or name another output"
            )

    def __enter__(self) -> Self:
        """Open the partial file for appending."""
        self._file = self._partial.open("ab")
        return self

    def write(self, row: Mapping[str, object]) -> None:
        """Append one line, and hand it to the operating system."""
        assert self._file is not None, "the output is not open"
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Rename the file if all went well; otherwise leave it for the next run."""
        assert self._file is not None, "the output is not open"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is None:
            self._partial.replace(self._path)
            self._manifest_path.unlink()
