"""References to tensors in artifacts: what interventions hold in place of arrays.

An intervention is compared, logged and sent between processes; a matrix of the size of an LM head
is not. Engines load what a reference names, and keep it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from demur.core.errors import ConfigError, DataError

TENSORS = "model.safetensors"


@dataclass(frozen=True)
class TensorRef:
    """A tensor of an artifact, which must not change while it is in use."""

    artifact: str
    """The artifact's folder."""
    key: str
    """The tensor's name in `model.safetensors`."""
    sha256: str
    """Of that file."""

    @classmethod
    def of(cls, folder: Path, key: str) -> Self:
        """Return the reference to a tensor as it is now.

        Raises:
            ConfigError: There is no such artifact.
        """
        return cls(str(folder), key, file_sha256(folder / TENSORS))

    def checked_path(self) -> Path:
        """Return the file, if it still is what the reference was made of.

        Raises:
            ConfigError: There is no such artifact.
            DataError: It has changed.
        """
        path = Path(self.artifact) / TENSORS
        found = file_sha256(path)
        if found != self.sha256:
            raise DataError(
                f"{path} has sha256 {found[:12]}, expected {self.sha256[:12]}: it was replaced "
                "while it was in use; load the responder again"
            )
        return path


def file_sha256(path: Path) -> str:
    """Return the hash of an artifact's file.

    Raises:
        ConfigError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}): expected an artifact") from error
