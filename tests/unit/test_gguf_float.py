"""Which GGUF files hold floats, and what becomes of one that does not."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from demur.core.errors import ConfigError
from demur.core.readings import Array
from demur.modeling.gguf_float import FloatFormat, float_format, write_float


@pytest.fixture
def matrix() -> Array:
    return np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)


@pytest.fixture
def quantised(tmp_path: Path, matrix: Array) -> Path:
    """Write a file with a quantised matrix, a norm and some fields."""
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_token_list(["a", "b", "<end>"])
    writer.add_chat_template("{{ messages }}")
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_quantised_weights_are_refused_by_name(quantised: Path) -> None:
    with pytest.raises(ConfigError, match=r"small\.gguf holds Q8_0: expected F16 or BF16"):
        float_format(quantised)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GGUF file"):
        float_format(tmp_path / "none.gguf")


@pytest.mark.parametrize(("to", "tolerance"), [("F16", 2**-10), ("BF16", 2**-7)])
def test_a_float_file_holds_the_same_values_and_fields(
    quantised: Path, tmp_path: Path, to: FloatFormat, tolerance: float
) -> None:
    out = tmp_path / "float.gguf"
    write_float(quantised, out, to=to)
    assert float_format(out) == to
    before, after = GGUFReader(quantised), GGUFReader(out)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert new.name == old.name
        expected = dequantize(old.data, old.tensor_type)
        found = dequantize(new.data, new.tensor_type)
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    for name in ("llama.block_count", "tokenizer.ggml.tokens", "tokenizer.chat_template"):
        assert after.fields[name].contents() == before.fields[name].contents()
