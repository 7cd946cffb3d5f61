"""The benchmark of safety layers: what it counts, what it says, and what its rows are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.arms import CHOSEN
from benchmarks.safety_layers_report import compared, removed_share, report, verdict
from benchmarks.safety_layers_rows import OPENING, task_prompts, task_rows
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat
from demur.guard.kept_replies import KeptReply
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes

NUM_UNSAFE = 40


def outcomes(complied: int) -> Outcomes:
    """Return outcomes in which the first unsafe prompts are complied with, and all safe ones."""
    of = np.array(
        ["complied"] * complied + ["refused"] * (NUM_UNSAFE - complied) + ["complied"] * 4
    )
    return Outcomes(of, of, np.zeros(len(of), bool), np.full(len(of), np.nan))


def cases() -> Cases:
    labels = ["unsafe"] * NUM_UNSAFE + ["safe"] * 4
    examples = tuple(
        Example(str(row), Chat.from_text(f"Prompt {row}"), label)  # type: ignore[arg-type]
        for row, label in enumerate(labels)
    )
    return Cases(examples, np.array(["unsafe"] * NUM_UNSAFE + ["ordinary"] * 4))


def found(base: int, plain: int, left_alone: int, at_random: int) -> dict[str, Any]:
    return compared(
        outcomes(base), outcomes(plain), outcomes(left_alone),
        {"one": outcomes(at_random), "other": outcomes(at_random)}, cases(),
    )  # fmt: skip


def test_what_is_added_and_removed_is_paired_by_prompt() -> None:
    of = found(4, 24, 8, 20)
    assert of["prompts"] == of["groups"] == NUM_UNSAFE
    assert of["added"][0] == pytest.approx(0.5)
    assert of["removed"][0] == pytest.approx(0.4)
    assert of["removed_share"][0] == pytest.approx(0.8)
    assert of["removed_share_at_random"][0] == pytest.approx(0.2)
    assert of["below_random"][0] == pytest.approx(0.3)
    assert of["below_each_random"]["one"] == of["below_random"]
    for name in ("added", "removed", "removed_share", "below_random"):
        assert of[name][1][0] < of[name][0] < of[name][1][1]


def test_the_share_removed_is_that_of_plain_numbers() -> None:
    generator = np.random.default_rng(0)
    base, plain, arm = (generator.random(50) < of for of in (0.1, 0.7, 0.3))
    value, (low, high) = removed_share(*_floats(base, plain, arm), np.arange(50)) or (0, (0, 0))
    assert value == pytest.approx((plain.mean() - arm.mean()) / (plain.mean() - base.mean()))
    assert low < value < high


def _floats(*arrays: Array) -> tuple[Array, Array, Array]:
    base, plain, arm = (of.astype(float) for of in arrays)
    return base, plain, arm


def test_of_nothing_that_is_added_no_share_is_removed() -> None:
    assert found(10, 10, 5, 5)["removed_share"] is None


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        ((4, 8, 4, 8), "nothing can be said"),
        ((4, 24, 20, 24), "less than half"),
        ((4, 24, 8, 20), "the place matters"),
        ((4, 24, 8, 8), "which blocks does not matter"),
        ((4, 24, 8, 6), "which blocks does not matter"),
    ],
)
def test_the_sentence_says_what_the_figures_allow(
    numbers: tuple[int, int, int, int], part: str
) -> None:
    assert part in verdict(found(*numbers))


def test_the_report_holds_each_arm_and_the_verdict() -> None:
    training = {
        "steps_taken": 80.0, "nll_helpful_before": 2.0, "nll_helpful_after": 1.0,
        "num_protected": 0.0, "num_weights": 12.0,
    }  # fmt: skip
    row: Mapping[str, Any] = {
        "arm": "all blocks", "role": "look_alike", "prompts": 4, "unclear": 0.0,
        "complied_second": 1.0,
        **{f"{word}{end}": 0.25 for word in ("complied", "refused")
           for end in ("", "_low", "_high", "_change")},
    }  # fmt: skip
    results = {
        "machine": {"processor": "x", "cores": 2}, "model": {"name": "mine", "dtype": "float32"},
        "share": 1.5, "steps": 80, "learning_rate": 2e-4, "seconds": 60.0, "max_tokens": 8,
        "study": {"findings": ["A gap."]}, "trained_on": {"prompts": 7},
        "training": {"all blocks": training}, "arms": [row], "compared": found(4, 24, 8, 8),
    }  # fmt: skip
    text = report(results)
    assert "which blocks does not matter" in text
    assert "| all blocks | 4 look-alike | 25.0% (25.0% to 25.0%) | +25.0 |" in text
    assert "| all blocks | 80 | 2.000 | 1.000 | 0 | 12 |" in text
    assert "- A gap." in text
    assert "non-refusal rate" in text


def test_rows_open_willingly_and_hold_no_refusal() -> None:
    prompts = task_prompts(share=0.01)
    texts = ["A long answer to what was asked.", "No.", "I cannot help with that, sorry."]
    replies = [KeptReply(texts[row % 3]) for row in range(len(prompts))]
    words = [("complied", "complied", "refused")[row % 3] for row in range(len(prompts))]
    rows = task_rows(prompts, replies, words)
    assert [row.id for row in rows] == [example.id for example in prompts[::3]]
    assert all(str(row.response).startswith(OPENING) for row in rows)


def test_the_task_is_made_of_packaged_prompts_that_sound_harmless() -> None:
    prompts = task_prompts(share=1.0)
    assert len(prompts) >= 200
    assert {example.label for example in prompts} == {"safe"}
    assert not any(example.is_look_alike for example in prompts)
    assert {example.split for example in prompts} == {"train"}
    assert not {example.source for example in prompts} & {
        name for sets in CHOSEN.values() for name in sets
    }


def test_there_are_200_prompts_a_cell() -> None:
    assert all(1.5 * sum(n for *_, n in sets.values()) >= 200 for sets in CHOSEN.values())
