"""Responder artifacts: what a trainer leaves, and what responders hold of it.

demur.json           what it is, for which model, from which data
model.safetensors    the trained arrays
README.md            the model card

A responder holds references to the arrays, not the arrays: a replaced file is found out when an
engine loads it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from demur.core.errors import DataError
from demur.core.folders import (
    CARD,
    MANIFEST,
    SCHEMA_VERSION,
    as_json,
    read_manifest,
    write_whole,
)
from demur.core.readings import Array
from demur.core.tensors import TENSORS, TensorRef
from demur.core.types import ModelId

KIND = "responder"


@dataclass(frozen=True)
class Trained:
    """A responder's artifact as it lies on disk, without its arrays."""

    method: str
    """The responder that it is for."""
    model_id: ModelId
    folder: str
    sha256: str
    """Of the arrays' file."""
    keys: tuple[str, ...]
    """Names of the arrays."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the responder has to know beside the arrays, as plain values."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Library versions, hashes of the training sets, hyper-parameters, what was measured."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read an artifact's folder; the arrays stay on disk.

        Raises:
            ConfigError: There is no artifact in the folder, or it is no responder's.
            DataError: A file is missing, truncated or altered.
        """
        manifest = read_manifest(folder, kind=KIND)
        try:
            expected = manifest["sha256"][TENSORS]
            with safe_open(TensorRef(str(folder), "", expected).checked_path(), "numpy") as file:
                keys = tuple(sorted(file.keys()))
            return cls(
                method=manifest["method"],
                model_id=ModelId(**manifest["model_id"]),
                folder=str(folder.resolve()),
                sha256=expected,
                keys=keys,
                fields=manifest["fields"],
                provenance=manifest["provenance"],
            )
        except (KeyError, TypeError, SafetensorError) as error:
            message = f"{folder} is incomplete or damaged ({error}): train the responder again"
            raise DataError(message) from error

    def tensor(self, key: str) -> TensorRef:
        """Return a reference to an array.

        Raises:
            DataError: There is no such array.
        """
        if key not in self.keys:
            raise DataError(
                f"{self.folder} holds no array {key!r}, only {list(self.keys)}: train the "
                f"{self.method} responder again"
            )
        return TensorRef(self.folder, key, self.sha256)

    def value(self, name: str) -> Any:
        """Return a plain value.

        Raises:
            DataError: There is none of this name.
        """
        if name not in self.fields:
            raise DataError(
                f"{Path(self.folder) / MANIFEST} holds no {name!r}, only {sorted(self.fields)}: "
                f"train the {self.method} responder again"
            )
        return self.fields[name]


def save_trained(
    folder: Path,
    *,
    method: str,
    model_id: ModelId,
    tensors: Mapping[str, Array],
    fields: Mapping[str, Any],
    provenance: Mapping[str, Any],
    card: str,
    tensors_file: str = TENSORS,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a responder's artifact, replacing an earlier artifact there.

    Args:
        folder: To write.
        method: The responder that it is for.
        model_id: The model that it was trained on.
        tensors: The trained arrays, by name.
        fields: What the responder has to know beside them.
        provenance: Where it comes from.
        card: The model card.
        tensors_file: What the arrays' file is called.
        files: What else is written, by name.

    Raises:
        ConfigError: The folder holds something else.
    """
    contents = {
        # The format is what transformers asks of a file of weights.
        tensors_file: to_bytes(
            {key: array.copy(order="C") for key, array in tensors.items()}, {"format": "pt"}
        ),
        **(files or {}),
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "method": method,
        "model_id": model_id.as_dict(),
        "fields": fields,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "provenance": provenance,
    }
    write_whole(folder, {**contents, CARD: card.encode(), MANIFEST: as_json(manifest)})
