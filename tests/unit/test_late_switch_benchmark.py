"""The benchmark of the late switch: replies that go on under an adapter, and its page."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.late_switch import switched
from benchmarks.late_switch_report import report
from demur.core.interventions import UseAdapter
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from tests.adapters import in_peft, lora
from tests.interventions import plain_greedy
from tests.tiny import tiny

TEXTS = ("Why?", "Tell me a story about two foxes.")
NUM_TOKENS = 8


@pytest.mark.parametrize("after", [0, 3])
def test_a_reply_is_the_models_own_up_to_the_switch_and_the_adapters_from_there(
    after: int, tmp_path: Path
) -> None:
    model = tiny("qwen2")
    engine, adapter = TransformersEngine(model), lora(tmp_path, model)
    chats = [Chat.from_text(text) for text in TEXTS]
    use = UseAdapter(adapter.ref, cache="recompute")
    found = switched(engine, chats, use, after=after, max_tokens=NUM_TOKENS)
    prompts = [engine.render(chat) for chat in chats]
    own = [tuple(plain_greedy(model, prompt, NUM_TOKENS)) for prompt in prompts]
    adapted = in_peft(model, adapter)
    whole = [tuple(plain_greedy(adapted, prompt, NUM_TOKENS)) for prompt in prompts]
    assert [ids[:after] for ids in found] == [ids[:after] for ids in own]
    assert found != own
    if after == 0:
        assert found == whole


def test_a_reply_that_ends_before_the_switch_is_said_to(tmp_path: Path) -> None:
    model = tiny("qwen2")
    engine, use = TransformersEngine(model), UseAdapter(lora(tmp_path, model).ref)
    with pytest.raises(RuntimeError, match="1 replies ended before token 9"):
        switched(engine, [Chat.from_text("Why?")], use, after=9, max_tokens=NUM_TOKENS)


def row(arm: str, after: int, cache: str, stopped: float, role: str = "unsafe") -> dict[str, Any]:
    interval = (stopped - 0.1, stopped + 0.1)
    return {
        "arm": arm, "after": after, "cache": cache, "role": role, "stopped": stopped,
        "interval": interval,
    }  # fmt: skip


def test_the_page_has_a_line_for_each_adapter_and_use_of_the_cache() -> None:
    unsafe = [
        row("base", 0, "-", 0.1),
        row("base", 4, "-", 0.2),
        row("sft", 0, "-", 0.9),
        row("sft", 4, "keep", 0.5),
        row("sft", 4, "recompute", 0.6),
    ]
    page = report(
        {
            "machine": {"processor": "x", "cores": 2, "versions": {"torch": "2"}},
            "model": {"name": "m", "dtype": "float32"},
            "share": 0.5,
            "steps": 80,
            "seconds": 120,
            "prompts": {"unsafe": 40, "ordinary": 30},
            "rows": [*unsafe, *(row | {"role": "ordinary", "stopped": 0.3} for row in unsafe)],
            "derta_over_sft": [
                {"after": 4, "cache": "keep", "change": 0.2, "interval": (0.1, 0.3)},
                {"after": 0, "cache": "keep", "change": 0.0, "interval": (-0.1, 0.1)},
            ],
        }
    )
    assert "| arm | cache | after 0 | after 4 |" in page
    assert "| base | - | 10% (0 to 20) | 20% (10 to 30) |" in page
    assert "| sft | keep | 90% (80 to 100) | 50% (40 to 60) |" in page
    assert "| sft | recompute | 90% (80 to 100) | 60% (50 to 70) |" in page
    assert "| 4 | keep | +20 (+10 to +30) |" in page
    assert "| 0 | - | +0 (-10 to +10) |" in page
    assert page.count("| base |") == 2
