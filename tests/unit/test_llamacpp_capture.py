"""llama.cpp's last states are transformers' final norm, and nothing else is promised."""

import json
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import CapabilityError, ConfigError
from demur.core.reads import CaptureSpec
from demur.core.types import Chat
from demur.modeling.gguf_float import write_float
from demur.modeling.load import LoadedModel, embedded_file, load
from demur.workflows.capture import Capturer
from tests.conftest import on_one_thread
from tests.model_folder import CommandLine, write_texts

pytest.importorskip("xllamacpp", exc_type=ImportError)

from demur.workflows.llamacpp_capture import LlamaCppReader

pytestmark = [pytest.mark.llamacpp, pytest.mark.slow]

SPEC = CaptureSpec((-1,), site="final_norm")
TEXTS = ["Name three rivers.", "What is a heron? " * 20, "hi"]
CHATS = [Chat.from_text(text) for text in TEXTS]
FARTHEST = 0.05
"""Of a state's norm: rounding to 16 bits in each product."""


@pytest.fixture(scope="module")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    write_float(embedded_file(), path)
    return path


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("embedded", dtype="float32")


def test_last_states_are_those_of_the_final_norm(
    float_path: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    reader = LlamaCppReader(float_path)
    theirs = Capturer(reader.identified(loaded), root=tmp_path, read_shards=reader)
    found = theirs.capture(CHATS, [SPEC]).load().pooled(SPEC)
    with on_one_thread():
        expected = Capturer(loaded, root=tmp_path).capture(CHATS, [SPEC]).load().pooled(SPEC)
        block = CaptureSpec((-1,))
        other = Capturer(loaded, root=tmp_path).capture(CHATS, [block]).load().pooled(block)
    assert len(list(tmp_path.glob("*/shard-00000.safetensors"))) == 3
    apart = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert apart.max() < FARTHEST
    assert (np.linalg.norm(found - other, axis=-1) > np.linalg.norm(expected, axis=-1)).all()


@pytest.mark.parametrize(
    "spec",
    [
        CaptureSpec((-1,)),
        CaptureSpec((-1,), "all", site="final_norm"),
        CaptureSpec((-1,), site="final_norm", normalise="rms"),
    ],
)
def test_other_reads_are_refused(
    float_path: Path, loaded: LoadedModel, tmp_path: Path, spec: CaptureSpec
) -> None:
    capturer = Capturer(loaded, root=tmp_path, read_shards=LlamaCppReader(float_path))
    with pytest.raises(CapabilityError, match="final norm alone"):
        capturer.capture(CHATS, [spec])


def test_quantised_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="Q4_1"):
        LlamaCppReader(embedded_file())


def test_the_command_captures_with_llamacpp(
    demur: CommandLine, float_path: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS)
    options = ("--model", float_path, "--engine", "llamacpp", "--site", "final_norm")
    found = demur("capture", "--input", texts, "--out", tmp_path / "out", *options)
    assert found.exit_code == 0, found.stderr
    manifest = json.loads((Path(found.stdout.strip()) / "manifest.json").read_text())
    assert manifest["model_id"]["dtype"] == "f16 in llama.cpp"
