"""What the throughput of the vLLM engine is said to show, and the page that says it."""

from typing import Any

import pytest

from benchmarks.throughput_vllm_report import AT_LEAST, CONTROL, LAST, ON, claims, markdown
from benchmarks.vllm_steps import Steps


def cell(low: float, high: float, *, noise: float = 0.001, streams: int = 32) -> dict[str, Any]:
    def of(low: float, high: float) -> dict[str, Any]:
        ratio = {"median": (low + high) / 2, "interval": (low, high)}
        return dict.fromkeys(("tokens_per_s", "first_token", "between_tokens"), ratio)

    times = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    arm = {
        "tokens_per_s": {"median": 100.0, "interval": (99.0, 101.0)},
        "first_token_ms": times,
        "between_tokens_ms": times,
        "scored": 40,
        "num_problems": 0,
        "replies_that_differ": 0,
        "of_one_window": Steps().as_dict(),
    }
    names = ("off", "off again", "on", "on, last token")
    return {
        "name": f"{streams} streams",
        "streams": streams,
        "requests": 40,
        "flagged": 0,
        "scores_apart": {"median": 0.01, "most": 0.05, "spread": 2.0},
        "ratios": {ON: of(low, high), LAST: of(0.999, 1.0), CONTROL: of(1 - noise, 1 + noise)},
        "arms": dict.fromkeys(names, arm),
    }


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (cell(0.992, 1.001), True),
        (cell(0.95, 0.97), False),
        (cell(0.95, 0.97, noise=0.03), None),
        (cell(0.97, 1.01), None),
    ],
)
def test_the_claim_holds_fails_or_is_not_decided(of: dict[str, Any], expected: object) -> None:
    assert claims([of])["cells"][f"32 streams: {ON}"] is expected


def test_few_streams_and_flags_make_no_claim_and_the_page_shows_all_arms() -> None:
    cells = [cell(0.95, 0.97, streams=4), cell(0.992, 1.0), {**cell(0.8, 0.9), "flagged": 4}]
    cells[2]["name"] = "32 streams, 10% flagged"
    assert set(claims(cells)["cells"]) == {f"32 streams: {name}" for name in (ON, LAST)}
    page = markdown(
        {
            "command": "python -m benchmarks.throughput_vllm",
            "machine": {"cores": 2, "processor": "some", "memory_gib": 8},
            "versions": {"torch": "2"},
            "note": "",
            "model": {"name": "tiny", "dtype": "float32"},
            "asked": {
                "rounds": 5,
                "seed": 0,
                "responder": "safety_prompt",
                "clock": "wall",
                "shape": None,
            },
            "settings": {
                "on": {"compilation": "NONE", "max_num_batched_tokens": 256, "block_size": 128}
            },
            "extraction": "it was not measured: RuntimeError: no CUDA",
            "cells": cells,
            "nearly_greedy": {
                "replies": 0, "largest_gap": 0.0, "margin": 1.0, "beyond_margin": 0
            },
            "claims": claims(cells),
        }
    )  # fmt: skip
    assert "it was not measured: RuntimeError: no CUDA." in page
    assert "lie at most 5.0e-02 apart" in page
    assert f"{AT_LEAST:.0%}" in page
    assert "0.996 (0.992 to 1.000)" in page
    for name in ("off", "off again", "on", "on, last token"):
        assert f"| {name} | 100.0 |" in page
