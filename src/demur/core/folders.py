"""Artifact folders: written whole or not at all, checked file by file, and never unpickled."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes

from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.readings import Array
from demur.core.types import ModelId

MANIFEST, CARD = "demur.json", "README.md"
SCHEMA_VERSION = 1


def require_replaceable(folder: Path) -> None:
    """Refuse a folder that holds something other than an artifact.

    Raises:
        ConfigError: It does, or it is a file.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: name a folder")
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and is no artifact: name a new or empty folder")


def write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder whole or not at all: into a neighbour first, then renamed.

    Raises:
        ConfigError: The folder exists and holds something that is not an artifact.
        OSError: The disk is full, say; nothing is left behind.
    """
    require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old")
    _settle(folder, old)  # a killed run may have left the older artifact there
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            write_synced(partial / name, content)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(folder, old)


def _settle(folder: Path, old: Path) -> None:
    """Put the older artifact back where there is no newer one; otherwise remove it."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def as_json(value: object) -> bytes:
    """Return a file's content: sorted, so that equal values give equal files."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{path} cannot be read ({error}): the artifact is damaged") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}: expected an object")
    return content


def read_checked(path: Path, expected: str) -> bytes:
    """Return a file's content, if it is what was written.

    Raises:
        DataError: It is not.
        FileNotFoundError: There is no such file.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} has sha256 {found[:12]}, expected {expected[:12]}: the artifact is truncated "
            "or was changed; make it again or copy it anew"
        )
    return content


def read_tensors(path: Path, expected: str) -> dict[str, Array]:
    """Return the arrays in a file, if it is what was written.

    Raises:
        DataError: It is not.
        FileNotFoundError: There is no such file.
    """
    content = read_checked(path, expected)
    try:
        return dict(from_bytes(content))
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file ({error})") from error


def read_manifest(folder: Path, *, kind: str) -> dict[str, Any]:
    """Return what an artifact's folder says of itself.

    Args:
        folder: Of the artifact.
        kind: What it has to be, such as `detector`.

    Raises:
        ConfigError: There is no artifact in the folder, or one of another kind.
        DataError: The manifest is damaged, or of another schema version.
    """
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder} holds no {kind}: expected a folder with {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("kind", kind)
    if found != kind:
        raise ConfigError(f"{folder} holds a {found}: expected a {kind}")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{folder} has schema version {version!r}: this demur reads {SCHEMA_VERSION}; make the "
            f"{kind} again or install the matching demur"
        )
    return manifest


def require_same_model(made_for: ModelId, found: ModelId, *, what: str) -> None:
    """Refuse a model that an artifact was not made for.

    Args:
        made_for: The artifact's.
        found: The one that is to be used.
        what: The artifact, in words.

    Raises:
        ModelMismatchError: Architecture, tokenizer or chat template differ.
    """
    differences = made_for.differences(found)
    if differences:
        raise ModelMismatchError(
            f"{what} was made for {made_for.name}, got {found.name} (another "
            f"{', '.join(differences)}): make it again or load the matching artifact"
        )
