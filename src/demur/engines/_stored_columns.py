"""Hands columns to a model's worker processes: a file in the cache, named by its hash."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from demur.core.errors import ConfigError, DataError
from demur.core.reads import CaptureSpec, read_from_dict
from demur.engines._columns import Column, Columns


def store(columns: Columns, folder: Path) -> str:
    """Write columns into a folder, whole or not at all; return the hash that names them."""
    path = folder / f"{columns.sha256}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        tensors = {
            str(number): np.ascontiguousarray(column.weights, np.float32)
            for number, column in enumerate(columns.columns)
        }
        specs = json.dumps([column.spec.as_dict() for column in columns.columns])
        save_file(tensors, partial, {"specs": specs, "num_blocks": str(columns.num_blocks)})
        partial.rename(path)
    return columns.sha256


def stored(sha256: str, folder: Path) -> Columns:
    """Read columns that were stored.

    Raises:
        ConfigError: There are none of that name.
        DataError: The file is damaged, or holds others.
    """
    path = folder / f"{sha256}.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"there are no read-outs at {path}: this process needs the same DEMUR_CACHE as the one "
            "that started it"
        )
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata()
            specs = [read_from_dict(spec) for spec in json.loads(about["specs"])]
            columns = tuple(
                Column(spec, file.get_tensor(str(number)))
                for number, spec in enumerate(specs)
                if isinstance(spec, CaptureSpec)
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it and start again") from error
    found = Columns(columns, int(about["num_blocks"]))
    if found.sha256 != sha256:
        raise DataError(f"{path} holds read-outs of another hash: delete it and start again")
    return found
