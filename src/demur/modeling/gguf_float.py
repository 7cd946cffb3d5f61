"""GGUF files whose weights are floats: which are, and how a quantised one becomes one.

llama.cpp's quantised kernels round the activations, too, so that states differ from those that the
same weights give elsewhere by more than a detector bears.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from demur.core.errors import ConfigError

FloatFormat = Literal["F16", "BF16"]
_SKIPPED = ("general.architecture", "general.file_type", "general.quantization_version")
"""Of a file's fields: those that the writer writes itself."""


def float_format(path: Path) -> str:
    """Return the format of a file's matrices, such as `F16`.

    Raises:
        ConfigError: There is no such file, or some are quantised.
    """
    if not path.is_file():
        raise ConfigError(f"there is no GGUF file at {path}")
    found = sorted({t.tensor_type.name for t in GGUFReader(path).tensors if len(t.shape) > 1})
    if len(found) != 1 or found[0] not in get_args(FloatFormat):
        raise ConfigError(
            f"{path} holds {', '.join(found)}: expected F16 or BF16 alone, since llama.cpp's "
            "quantised kernels change the states; convert the model anew, or read it with "
            "--engine transformers"
        )
    return found[0]


def write_float(path: Path, out: Path, *, to: FloatFormat = "F16") -> None:
    """Write a file with the same tokenizer and settings whose matrices are floats.

    Args:
        path: A GGUF file.
        out: The new one.
        to: Of matrices; vectors, such as norms, become float32.
    """
    reader = GGUFReader(path)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in _SKIPPED:
            writer.add_key_value(name, field.contents(), field.types[0], _item(field.types))
    writer.add_file_type(LlamaFileType[f"MOSTLY_{to}"])
    kind = GGMLQuantizationType[to]
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _item(types: Sequence[Any]) -> Any:
    return types[-1] if types[0] == GGUFValueType.ARRAY else None
