"""Turns a GGUF file into a safetensors folder in the user's cache, once.

transformers keeps GGUF weights packed and slow unless told otherwise, and takes many seconds to
unpack them: the unpacked weights are stored as bfloat16 and load in about a second afterwards.
"""

import hashlib
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from demur.core.errors import ConfigError, DataError
from demur.modeling.quiet import quiet

FORMAT_VERSION = 1
"""Raised when the conversion changes, so that older folders are not used."""


def cache_folder() -> Path:
    """Return the user's cache: `DEMUR_CACHE`, or `~/.cache/demur`."""
    named = os.environ.get("DEMUR_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "demur"


def unpack(path: Path) -> Path:
    """Return a safetensors folder with the model and tokenizer of a GGUF file.

    The folder is keyed by the file's hash and written whole or not at all.

    Args:
        path: The `.gguf` file.

    Raises:
        ConfigError: There is no such file.
        DataError: The file is no GGUF file of a known architecture.
    """
    if not path.is_file():
        raise ConfigError(f"there is no GGUF file at {path}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:16]}-v{FORMAT_VERSION}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run that had the same process id
    partial.mkdir(parents=True)
    try:
        _convert(path, partial)
        with suppress(OSError):  # another process may have been faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if not folder.is_dir():
        raise DataError(f"{folder} could not be written: is the disk full, or the cache read-only?")
    return folder


def _convert(path: Path, folder: Path) -> None:
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                **place, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(**place)
    except (ValueError, KeyError, NotImplementedError, IndexError, struct.error) as error:
        raise DataError(f"{path} cannot be read as a GGUF model: {error}") from error
    _restore_pre_tokenizer(tokenizer, path)
    # transformers refuses to save what it still takes for a quantised model.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _restore_pre_tokenizer(tokenizer: Any, path: Path) -> None:
    """Set the pre-tokenizer that the file names, where transformers assumes GPT-2's."""
    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
