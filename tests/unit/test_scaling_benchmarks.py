"""The benchmarks of growth and of guard models: slopes, rounds, operations and claims."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from benchmarks import against_guard_models as against
from benchmarks.alternating import alternate
from benchmarks.random_guards import random_guard, reads_of
from benchmarks.scaling import exponent, measure
from benchmarks.shapes import SERVED, make, shape_folder
from demur.core.reads import CaptureSpec
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from tests.tiny import tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    sizes = (1, 4, 16, 64)
    noise = np.random.default_rng(0)
    times = [0.01 * size**power * noise.lognormal(0, 0.05, size=9) for size in sizes]
    found = exponent(sizes, times, draws=300)
    low, high = found["interval"]
    assert low <= found["exponent"] <= high
    assert found["exponent"] == pytest.approx(power, abs=0.05)


def test_each_round_runs_every_arm_once_and_orders_differ() -> None:
    called: list[str] = []
    arms = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = alternate(arms, rounds=8, warm_ups=0)
    rounds = ["".join(called[start : start + 3]) for start in range(0, 24, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(of) for name, of in seconds.items()} == {"a": 8, "b": 8, "c": 8}


def test_an_arm_over_its_time_sits_out_after_two_rounds() -> None:
    now = 0.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    arms = {"slow": lambda: takes(10.0), "fast": lambda: takes(0.1)}
    seconds = alternate(arms, rounds=6, warm_ups=0, clock=lambda: now, most_s=5.0)
    assert {name: len(of) for name, of in seconds.items()} == {"slow": 2, "fast": 6}


@pytest.mark.parametrize("make_config", [LlamaConfig, Qwen3Config])
def test_operations_are_those_of_the_products_and_of_attention(make_config: Any) -> None:
    num_tokens, width, inner, kv_width = 16, 32, 48, 16
    model = make(make_config(**SHAPE), dtype=torch.float32)
    products = 2 * width * width + 2 * width * kv_width + 3 * width * inner
    attention = 4 * num_tokens * num_tokens * width
    expected = SHAPE["num_hidden_layers"] * (2 * num_tokens * products + attention)
    assert against.flops(model, num_tokens) == expected + 2 * SHAPE["vocab_size"] * width


def test_a_shape_is_written_once_as_a_chat_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path))
    monkeypatch.setattr("benchmarks.shapes.load", lambda _: tiny())
    monkeypatch.setitem(SERVED, "tiny", lambda: LlamaConfig(**SHAPE))
    folder = shape_folder("tiny")
    engine = TransformersEngine.load(folder)
    assert engine.loaded.model_id.dtype == "bfloat16"
    assert engine.loaded.end_token_ids == tiny().end_token_ids
    assert len(engine.render(Chat.from_text("How come?"))) > 8
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert shape_folder("tiny") == folder
    assert written == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_guards_operations_are_counted_by_read() -> None:
    last = CaptureSpec((1, 2))
    mean = CaptureSpec((2,), "user", normalise="rms", pool="mean")
    assert against.guard_flops((last,), 8, 100) == 2 * 8 * 2
    assert against.guard_flops((last, mean), 8, 100) == 2 * 8 * 3 + 4 * 8 * 100


def test_a_random_guard_flags_nothing_and_shows_every_detector() -> None:
    guard = random_guard(TransformersEngine(tiny()), num_detectors=3, num_layers=2)
    verdicts = guard.check("any text")
    assert [verdict.flagged for verdict in verdicts] == [False] * 3
    assert len({verdict.score for verdict in verdicts}) == 3
    assert all(read.layers == (2, 3) for read in reads_of(4, 2))


@pytest.mark.parametrize("question", ["tokens", "detectors", "layers", "batch"])
def test_each_question_gives_a_row_a_size(question: str) -> None:
    sizes = {"tokens": (60, 120), "layers": (1, 4)}.get(question, (1, 3))
    found = measure(TransformersEngine(tiny()), question, sizes, rounds=2, most_s=60)
    assert [row["size"] for row in found["rows"]] == list(sizes)
    assert [row["rounds"] for row in found["rows"]] == [2, 2]
    assert all(row["guard_s"]["median"] > 0 for row in found["rows"])


def row(own: float, extra: float, noise_s: float = 0.01) -> dict[str, Any]:
    of_it = {
        "added_s": {"median": 1.0},
        "own_time_of_it": {"interval": (0.0, own)},
        "extra_of_it": {"interval": (-0.1, extra)},
        "flops_of_it": 1e-6,
    }
    large = {**of_it, "added_s": {"median": 2.0}}
    return {
        "guard_models": {"small": of_it, "large": large},
        "control_s": {"interval": (-noise_s, noise_s)},
    }


def test_the_claim_is_held_against_the_upper_end_for_the_cheapest_guard_model() -> None:
    found = against.claim({"0.5B": row(0.01, 0.03)})["served"]["0.5B"]
    assert found == {
        "cheapest": "small",
        "by_own_time": True,
        "by_the_clock": False,
        "by_operations": True,
    }


def test_noise_over_the_claim_leaves_the_clock_undecided() -> None:
    (found,) = against.claim({"1B": row(0.01, -0.1, noise_s=0.03)})["served"].values()
    assert found["by_the_clock"] is None
