"""What the packaged adapter's recipe takes of its prompts."""

import numpy as np

from benchmarks.build_adapter import hardest
from demur.core.examples import Example, Label
from demur.core.types import Chat


def example(label: Label, source: str) -> Example:
    return Example(id="x", chat=Chat.from_text("Why?"), label=label, source=source)


def test_unsafe_prompts_are_taken_where_flagged_and_safe_ones_where_nearest_to_it() -> None:
    examples = [
        example("unsafe", "a"),
        example("safe", "a"),
        example("unsafe", "a"),
        example("safe", "a"),
        example("safe", "b"),
        example("safe", "a"),
        example("safe", "b"),
    ]
    margins = np.array([0.0, -3.0, -0.1, -2.0, -9.0, -1.0, -8.0])
    assert hardest(examples, margins).tolist() == [0, 3, 5, 6]
