"""A place to run the command line in: a model folder, labelled prompts, a detector fitted on them.

The model is random, so a prompt counts as unsafe if it holds a marker word: its states show it.
"""

import gzip
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from demur.cli.main import run
from tests.tiny import CHATML, tiny

MARKER = "MARKER"
WORDS = ("the", "river", "ran", "past", "an", "old", "mill", "where", "a", "heron", "stood")
NUM_PROMPTS = 640
"""A fifth is held out, half of it benign: 64 groups, which support 5% and 10%."""

Fields = Mapping[str, object]

UNSCORED = 3
"""The exit code of a run in which some rows could not be scored."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """What stands on standard error, on one line."""
        return " ".join(self.stderr.split())

    def rows(self) -> list[dict[str, Any]]:
        """Return the JSON lines on standard output."""
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass(frozen=True)
class CommandLine:
    """Runs `demur` in this process."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Outcome:
        """Run a command to its exit; an exception that reaches the user is the test's failure.

        Args:
            arguments: Texts, paths or numbers.
            stdin: What stands on standard input.
        """
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), *captured)


@dataclass(frozen=True)
class Workplace:
    """Where the command line finds what it needs."""

    cache_path: Path
    model_path: Path
    labelled_path: Path
    artifact_path: Path

    @property
    def model(self) -> tuple[str, ...]:
        """The options that name the model."""
        return on_model(self.model_path)

    @property
    def guarded(self) -> tuple[str, ...]:
        """The options that name the model and its detector."""
        return (*self.model, "--detector", str(self.artifact_path))


def on_model(path: Path) -> tuple[str, ...]:
    """Return the options that name a model, in a number format that all machines compute alike."""
    return ("--model", str(path), "--dtype", "float32")


def save_model(
    path: Path, architecture: str = "llama", *, template: str | None = CHATML, seed: int = 0
) -> Path:
    """Save a tiny model as a folder that transformers loads; a seed other than 0 draws weights."""
    loaded = tiny(architecture, template=template)
    model = loaded.model
    if seed:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


def labelled_prompts(number: int = NUM_PROMPTS, *, seed: int = 0) -> list[dict[str, object]]:
    """Return prompts of which every second one is unsafe: it holds the marker word."""
    generator = random.Random(seed)
    rows: list[dict[str, object]] = []
    for row in range(number):
        words = [generator.choice(WORDS) for _ in range(5)]
        if row % 2 == 0:
            words.insert(generator.randrange(6), MARKER)
        label = "unsafe" if row % 2 == 0 else "safe"
        rows.append({"id": f"p{row}", "text": " ".join(words), "label": label})
    return rows


def write_lines(path: Path, rows: Iterable[Fields]) -> Path:
    """Write JSON lines, gzipped if the name says so."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """Write one prompt a line."""
    return write_lines(path, [{"text": text} for text in texts])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_one_line(outcome: Outcome, *parts: str, exit_code: int = 2) -> None:
    """See that a command ended in one line of error with some parts."""
    assert outcome.exit_code == exit_code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.stderr
    for part in parts:
        assert part in lines[0]
