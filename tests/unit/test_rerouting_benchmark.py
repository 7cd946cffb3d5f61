"""The benchmark of re-routing counts what models read, and holds it against what is claimed."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rerouting import (
    ask,
    counting_blocks,
    markdown,
    read_of,
    row,
    rows,
    tokens_in_transformers,
)
from benchmarks.rerouting_ways import PASSES, SLACK, Way, ways
from demur.core.interventions import UseAdapter
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.responders.safety_prompt import SafetyPrompt
from tests.tiny import tiny


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], int, int]:
    """The rows of a tiny model, and the lengths of the prompt and of the safer one."""
    loaded = tiny()
    engine, chat = TransformersEngine(loaded), Chat.from_text("Tell me of the sea.")
    prompt = engine.render(chat)
    safer = engine.render(chat.with_safety_prompt(SafetyPrompt().text))
    read = read_of(loaded)
    of = ways(loaded, tmp_path_factory.mktemp("ways") / "all", read_layer=read.layers[0])
    engine.prepare(way.intervention for way in of if way.intervention is not None)
    found = rows(
        of,
        partial(ask, engine, prompt, read),
        partial(tokens_in_transformers, engine),
        rounds=2,
        clock=iter(np.arange(1e6)).__next__,
    )
    return found, len(prompt), len(safer)


def test_tokens_are_those_that_each_way_reads(
    found: tuple[list[dict[str, Any]], int, int],
) -> None:
    its_rows, prompt, safer = found
    extra = {one["way"]: one["extra_tokens"] for one in its_rows}
    assert extra == {
        "passes": 0,
        "fixed_reply": 0,
        "refusal_head": 0,
        "steering": 1,
        "safety_prompt": safer,
        "soft_prompt": safer,
        "adapter above the read layer, blocks 3 to 3": pytest.approx(prompt / 4, abs=0.01),
        "adapter below the read layer, blocks 1 to 3": pytest.approx(prompt * 3 / 4, abs=0.01),
        "adapter in all blocks, blocks 0 to 3": prompt,
    }
    assert {one["tokens_hold"] for one in its_rows} == {"yes", ""}


def test_counting_leaves_no_hook_behind() -> None:
    blocks = tiny().parts.blocks
    before = [list(block._forward_hooks) for block in blocks]
    with counting_blocks(tiny()):
        assert [list(block._forward_hooks) for block in blocks] != before
    assert [list(block._forward_hooks) for block in blocks] == before


def adapter(share: float) -> Way:
    class Ref:
        first_layer = 0

    return Way("adapter", UseAdapter(Ref()), share)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("times", "holds"),
    [
        ([0.5] * 5, "yes"),
        ([0.5 + SLACK + 0.01] * 5, "no"),
        ([0.3, 0.4, 0.5, 0.7, 0.9], "not decided"),
    ],
)
def test_an_adapters_time_is_held_against_its_share_of_the_blocks(
    times: list[float], holds: str
) -> None:
    plain = np.full(5, 2.0)
    of = row(adapter(0.5), 50, 100, plain * (1 + np.array(times)), plain)
    assert of["time_holds"] == holds
    assert of["time_of_a_prefill"]["median"] == pytest.approx(times[2])


@pytest.mark.parametrize(("extra", "holds"), [(0, "yes"), (1, "no")])
def test_a_token_too_many_breaks_the_claim(extra: int, holds: str) -> None:
    of = row(Way("fixed_reply", None, 0.0), extra, 100, np.ones(3), np.ones(3))
    assert (of["tokens_hold"], of["time_holds"]) == (holds, "")


def test_the_page_shows_rows_and_what_was_not_measured() -> None:
    lines = [
        row(PASSES, 0, 100, np.ones(3), np.ones(3)),
        row(adapter(0.5), 80, 100, np.full(3, 1.5), np.ones(3)),
    ]
    page = markdown(
        {
            "command": "python -m benchmarks.rerouting",
            "machine": {"cores": 2, "processor": "some"},
            "model": {"name": "tiny", "dtype": "float32"},
            "rounds": 3,
            "read_layer": 2,
            "blocks": 4,
            "engines": {"transformers": {"100 tokens": lines}, "vllm": "not installed here"},
        }
    )
    assert "| adapter | 80 | 80.0% | 50% | 500.0 | 50.0% (50.0% to 50.0%) | no | yes |" in page
    assert "vllm was not measured: not installed here." in page


def test_an_error_of_the_engine_is_raised(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny())
    prompt = engine.render(Chat.from_text("Hi"))
    lost = Way("lost", ways(engine.loaded, tmp_path / "all", read_layer=2)[4].intervention)
    (tmp_path / "all" / "head" / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="lost"):
        ask(engine, prompt, read_of(engine.loaded), lost)
