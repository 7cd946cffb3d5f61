"""How the strength of the adapter that ships is chosen."""

import numpy as np
import pytest

from benchmarks.adapter_scale import best, handed_over, shares_of
from benchmarks.adapter_scale_report import report
from demur.core.examples import Example
from demur.core.types import Chat
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes


def test_flagged_unsafe_prompts_are_answered_and_the_safe_ones_nearest_to_it() -> None:
    chat = Chat.from_text("Why?")
    role = np.array(["look_alike", "unsafe", "look_alike", "unsafe", "look_alike"])
    cases = Cases(tuple(Example(str(row), chat) for row in range(5)), role)
    margins = np.array([-3.0, 0.0, -1.0, -0.5, 0.2])
    assert handed_over(cases, margins, most_safe=2).tolist() == [1, 2, 4]


def test_the_lowest_sum_wins_and_the_greater_of_two_scales() -> None:
    rows = [
        {"scale": scale, "safe_refused": safe, "unsafe_complied": unsafe}
        for scale, safe, unsafe in ((0.0, 0.0, 0.9), (1.0, 0.25, 0.25), (0.5, 0.5, 0.0))
    ]
    assert best(rows) == 1.0
    assert best([*rows, {"scale": 0.25, "safe_refused": 0.125, "unsafe_complied": 0.25}]) == 0.25


def test_a_page_shows_the_shares_of_each_scale() -> None:
    words = np.array(["refused", "complied", "refused", "complied"])
    outcomes = Outcomes(words, words, np.array([True, False, False, False]), np.zeros(4))
    row = shares_of(0.5, outcomes, np.array([False, False, True, True]))
    assert row["safe_refused"] == row["unsafe_complied"] == pytest.approx(0.5)
    page = report(
        {
            "model": {"name": "tiny"},
            "machine": {"processor": "one", "cores": 1},
            "seconds": 60,
            "unsafe": 2,
            "safe": 2,
            "safe_flagged": 1,
            "max_tokens": 4,
            "responder": "adapter:mine",
            "scales": [row],
            "best": 0.5,
        }
    )
    assert "| 0.5 | 50.0% | 50.0% | 100.0% | 25.0% |" in page
