"""The benchmark of adapters of upper blocks: what is held against what, and its page."""

import numpy as np
import pytest

from benchmarks.adapter_layers import DEPTHS, strengths
from benchmarks.adapter_layers_report import report
from benchmarks.arms import BASE
from demur.core.examples import Example
from demur.core.types import Chat
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes

NUM_UNSAFE, NUM_ORDINARY = 20, 10


def cases() -> Cases:
    labels = ["unsafe"] * NUM_UNSAFE + ["safe"] * NUM_ORDINARY
    examples = tuple(
        Example(str(row), Chat.from_text(f"Prompt {row}"), label)  # type: ignore[arg-type]
        for row, label in enumerate(labels)
    )
    return Cases(examples, np.array(["unsafe"] * NUM_UNSAFE + ["ordinary"] * NUM_ORDINARY))


def outcomes(unsafe: int, ordinary: int) -> Outcomes:
    """Return outcomes in which the first prompts of each role are refused."""
    of = np.array(
        ["refused"] * unsafe
        + ["complied"] * (NUM_UNSAFE - unsafe)
        + ["refused"] * ordinary
        + ["complied"] * (NUM_ORDINARY - ordinary)
    )
    return Outcomes(of, of, np.zeros(len(of), bool), np.full(len(of), np.nan))


def test_each_adapter_is_held_against_the_one_of_all_blocks_prompt_by_prompt() -> None:
    rows = strengths(
        outcomes(2, 0), {"0 to 9": outcomes(16, 3), "5 to 9": outcomes(12, 4)}, cases()
    )
    assert [(row["arm"], row["role"]) for row in rows] == [
        (arm, role) for arm in (BASE, "0 to 9", "5 to 9") for role in ("unsafe", "ordinary")
    ]
    by_hand = [-0.7, -0.3, 0.0, 0.0, -0.2, 0.1]
    for row, expected in zip(rows, by_hand, strict=True):
        value, (low, high) = row["to_all"]["outcome"]
        assert value == pytest.approx(expected)
        assert low <= value <= high
    assert [row["switched_on"] for row in rows] == [None, None, 1.0, 1.0, 1.0, 1.0]
    assert rows[2]["refused_change"] == pytest.approx(0.7)


def test_the_first_depth_leaves_nothing_alone() -> None:
    assert DEPTHS[0] == 0
    assert list(DEPTHS) == sorted(set(DEPTHS))


def test_the_page_says_what_is_read_again_and_what_it_does() -> None:
    metrics = {
        "num_weights": 1200.0, "nll_refusal_before": 3.0, "nll_refusal_after": 1.0,
        "nll_helpful_before": 2.0, "nll_helpful_after": 1.5,
    }  # fmt: skip
    arms = strengths(
        outcomes(2, 0), {"0 to 9": outcomes(16, 3), "5 to 9": outcomes(12, 4)}, cases()
    )
    page = report(
        {
            "machine": {"processor": "x", "cores": 2},
            "model": {"name": "mine", "dtype": "float32"},
            "share": 1.0, "steps": 12, "seconds": 60.0, "max_tokens": 8, "num_blocks": 10,
            "trained_on": {"prompts": 7}, "training": {"0 to 9": metrics, "5 to 9": metrics},
            "arms": arms,
        }
    )  # fmt: skip
    assert "| 0 to 9 | 1,200 | 100% | 3.00 to 1.00 | 2.00 to 1.50 |" in page
    assert "| 5 to 9 | 1,200 | 50% |" in page
    assert "| 5 to 9 | 20 unsafe | 40.0% (" in page
    assert "| 60.0% refused | -20.0 (" in page
    assert "non-refusal rate" in page
