"""Who answers flagged prompts by default: the adapter that ships for the model, or a fixed text."""

from dataclasses import replace
from pathlib import Path

import pytest

from demur.core.adapters import LoraFolder
from demur.core.errors import ConfigError
from demur.core.interventions import UseAdapter
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import packaged
from demur.guard.packaged import packaged_adapter, responder_line
from demur.guard.responding import check_responder, load_responder
from tests.adapters import lora, with_manifest
from tests.tiny import tiny

CHAT = Chat.from_text("How are you?")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoraFolder:
    """An adapter that ships for the tiny model, and for no other."""
    monkeypatch.setattr(packaged, "ADAPTERS_PATH", tmp_path)
    return with_manifest(lora(tmp_path / "tiny", tiny()), tiny())


def test_the_adapter_of_the_model_is_the_default(shipped: LoraFolder) -> None:
    line = responder_line("pretrained", TransformersEngine(tiny()))
    assert line == "adapter:pretrained"
    responder = load_responder(line, tiny().model_id)
    assert responder.respond(CHAT, ()) == UseAdapter(shipped.ref)


def test_its_strength_can_be_set(shipped: LoraFolder) -> None:
    responder = load_responder("adapter:pretrained@0.5", tiny().model_id)
    assert responder.respond(CHAT, ()) == UseAdapter(shipped.ref, 0.5)


def test_a_model_without_one_refuses_in_fixed_words(shipped: LoraFolder) -> None:
    assert responder_line("pretrained", FakeEngine()) == "fixed_reply"
    other = replace(tiny().model_id, chat_template="another", name="other")
    assert packaged_adapter(other) is None
    with pytest.raises(ConfigError, match="no packaged adapter was trained on other"):
        load_responder("adapter:pretrained", other)


def test_an_engine_that_runs_no_adapters_refuses_in_fixed_words(
    shipped: LoraFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(FakeEngine, "model_id", tiny().model_id, raising=False)
    assert packaged_adapter(engine.model_id) is not None
    monkeypatch.setattr(FakeEngine, "capabilities", frozenset(), raising=False)
    assert responder_line("pretrained", engine) == "fixed_reply"


def test_other_lines_stay_as_they_are(shipped: LoraFolder) -> None:
    assert responder_line("safety_prompt", TransformersEngine(tiny())) == "safety_prompt"


def test_lines_are_checked_without_a_model(
    shipped: LoraFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_responder("pretrained")
    check_responder("adapter:pretrained")
    monkeypatch.setattr(packaged, "ADAPTERS_PATH", tmp_path / "empty")
    check_responder("pretrained")
    with pytest.raises(ConfigError, match="no packaged adapter was trained on any model"):
        check_responder("adapter:pretrained")
