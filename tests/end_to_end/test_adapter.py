"""An adapter of plain PEFT from the command line, behind the server, and in the example."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.responding import load_responder
from demur.guard.routes import FlaggedTo
from tests.adapters import in_peft, lora
from tests.guards import marker_detector
from tests.interventions import plain_greedy
from tests.model_folder import MARKER, CommandLine, Workplace, assert_one_line, write_texts
from tests.servers import CHAT, app_of, events_of, running, said
from tests.tiny import tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "adapter.py"
NUM_TOKENS = 6
SAFE, UNSAFE = "Tell me about number 52, please.", "Tell me about number 53 MARKER, please."


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_flagged_prompts_are_answered_as_peft_answers_them(
    demur: CommandLine, workplace: Workplace, scale: float, tmp_path: Path
) -> None:
    adapter = lora(tmp_path / "adapter", tiny())
    texts = [f"the {MARKER} ran", "the river ran"]
    answered = demur(
        "reply", *workplace.guarded, "--input", write_texts(tmp_path / "prompts.jsonl", texts),
        "--responder", f"adapter:{adapter.folder}@{scale}", "--max-tokens", NUM_TOKENS, "--json",
    )  # fmt: skip
    assert answered.exit_code == 0, answered.stderr
    rows = answered.rows()
    assert [row["route"] for row in rows] == ["adapter", "pass"]
    engine = TransformersEngine(tiny())
    for row, text, model in zip(
        rows, texts, (in_peft(tiny(), adapter, scale=scale), tiny()), strict=True
    ):
        prompt = engine.render(Chat.from_text(text))
        assert row["token_ids"] == plain_greedy(model, prompt, NUM_TOKENS)


def test_an_adapter_that_cannot_be_run_ends_in_one_line(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    other = lora(tmp_path / "other", tiny("gpt2"))
    for folder, problem in (
        (other.folder, "it was made for another model"),
        (str(tmp_path), "holds no adapter: expected a folder with adapter_config.json"),
    ):
        options = (*workplace.guarded, "--responder", f"adapter:{folder}")
        assert_one_line(demur("reply", "the river ran", *options), problem)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_answers_flagged_prompts_under_it(stream: bool, tmp_path: Path) -> None:
    engine = TransformersEngine(tiny())
    adapter = lora(tmp_path, tiny(), layers=[2, 3])
    guard = Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo("adapter"),
        responders={"adapter": load_responder(f"adapter:{adapter.folder}", engine.model_id)},
    )
    models = {UNSAFE: in_peft(tiny(), adapter), SAFE: tiny()}
    with running(app_of(guard)) as server:
        for text, model in models.items():
            body: dict[str, Any] = {
                "model": engine.model_id.name,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": NUM_TOKENS,
                "temperature": 0,
                "stream": stream,
            }
            response = server.post(CHAT, body)
            prompt = engine.render(Chat.from_text(text))
            expected = tiny().tokenizer.decode(plain_greedy(model, prompt, NUM_TOKENS))
            if stream:
                assert said(events_of(response.text)) == expected
            else:
                assert response.json()["choices"][0]["message"]["content"] == expected


def test_the_example_answers_under_it_and_switches_half_way(
    workplace: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = lora(tmp_path, tiny())
    argv = [EXAMPLE.name, str(workplace.model_path), str(workplace.artifact_path), adapter.folder]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    assert "adapter " in printed
    assert printed.count("|") >= 1
    assert printed.endswith((" length\n", " stop\n"))
