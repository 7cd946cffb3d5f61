"""Examples run as they stand, on a tiny model."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import on_one_thread
from tests.tiny import CONFIGS, byte_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """Save a tiny model with room for the prompts that ship, as bytes."""
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.max_position_embeddings = 4096
    path = tmp_path / "tiny"
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def printed(
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], str]:
    """Return what runs an example on the tiny model, and gives what it prints."""

    def run(name: str) -> str:
        monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", [name, str(model_path)])
        with on_one_thread():
            runpy.run_path(str(EXAMPLES / name))
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_safeswitch_answers_what_its_detector_flags(printed: Callable[[str], str]) -> None:
    lines = printed("safeswitch.py").splitlines()
    assert len(lines) == 12
    assert all(line.startswith(("safe: ", "unsafe: ")) for line in lines)
    assert all(": pass: " in line or ": refusal_head: " in line for line in lines)


@pytest.mark.slow
def test_steering_turns_every_prompt_one_way_or_the_other(
    printed: Callable[[str], str],
) -> None:
    routes = re.findall(r"^(\w+) -?\d\.\d+ ", printed("steering.py"), re.MULTILINE)
    assert len(routes) == 2
    assert set(routes) <= {"steer_to_refusal", "soften"}
