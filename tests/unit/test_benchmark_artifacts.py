"""Artifacts of benchmarks are trained once, and anew for other rows or hyper-parameters."""

from pathlib import Path

import pytest

from benchmarks.artifacts import trained_folder, training_metrics
from demur.core.adapters import WEIGHTS
from demur.core.examples import Example
from demur.core.types import Chat
from demur.trainers.sft import SftTrainer
from tests.model_folder import Workplace

ROWS = [
    Example(
        str(number),
        Chat.from_text(f"the river ran {number}"),
        "unsafe" if number % 2 else "safe",
        safe_response=f"the answer is {number}",
    )
    for number in range(8)
]


@pytest.mark.parametrize("change", ["nothing", "rows", "steps"])
def test_what_lies_there_is_used_unless_it_was_made_otherwise(
    change: str, workplace: Workplace, tmp_path: Path
) -> None:
    def folder(rows: list[Example], steps: int) -> Path:
        trainer = SftTrainer(rank=2, layers=[1], steps=steps, batch_size=2, held_out=0.25)
        return trained_folder(trainer, rows, str(workplace.model_path), tmp_path / "made")

    first = folder(ROWS, 2)
    metrics, made = training_metrics(first), (first / WEIGHTS).stat().st_mtime_ns
    assert metrics["num_unsafe"] + metrics["num_safe"] == 6  # a quarter is held out
    again = folder(ROWS[:4] if change == "rows" else ROWS, 3 if change == "steps" else 2)
    assert again == first
    assert ((again / WEIGHTS).stat().st_mtime_ns == made) == (change == "nothing")
