"""Prompts to train adapters on, and a training that takes no time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demur.core.examples import Example
from demur.core.training import Run
from demur.core.types import Chat

QUICK: Mapping[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 5e-3,
}
WORDS = ("red", "green", "blue", "pink", "grey", "teal", "gold", "plum", "rust", "sand")


def examples(number: int = 10) -> list[Example]:
    """Return prompts of both labels with all replies that any method wants."""
    found = []
    for row, word in enumerate(WORDS[:number]):
        label: Any = "unsafe" if row % 2 == 0 else "safe"
        harmful = f"take {word} and" if row % 2 == 0 else None
        found.append(
            Example(
                f"p{row}", Chat.from_text(f"say {word}"), label,
                safe_response="No, sorry." if harmful else f"{word}!", harmful_response=harmful,
            )
        )  # fmt: skip
    return found


def run_on(folder: Path, **given: Any) -> Run:
    """Return a run on a model's folder."""
    return Run(str(folder), **{"dtype": "float32", "device": "cpu", "seed": 3, **given})
