"""Responders in a line of text, and the artifacts that they read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.folders import MANIFEST
from demur.core.interventions import EndReply, ReplyWith, SwapHead, UseAdapter
from demur.core.tensors import TENSORS, TensorRef
from demur.core.trained import Trained, save_trained
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.guard.responding import (
    check_mid_reply,
    check_responder,
    load_mid_reply,
    load_responder,
    route_of,
)
from tests.adapters import lora
from tests.tiny import tiny
from tests.trained import trained

CHAT = Chat.from_text("How are you?")


@pytest.fixture
def head(tmp_path: Path) -> Trained:
    return trained("refusal_head", tmp_path / "head")


def test_a_name_alone_has_the_defaults() -> None:
    responder = load_responder("safety-prompt", FakeEngine().model_id)
    assert responder == type(responder)()


def test_a_text_after_the_colon_is_the_first_field() -> None:
    responder = load_responder("fixed_reply:No, thanks.", FakeEngine().model_id)
    assert responder.respond(CHAT, ()) == ReplyWith("No, thanks.")


def test_a_route_is_called_as_the_method() -> None:
    assert route_of("fixed-reply:No.") == "fixed_reply"


def test_a_folder_after_the_colon_is_the_artifact(head: Trained) -> None:
    responder = load_responder(f"refusal_head:{head.folder}", tiny().model_id)
    assert responder.respond(CHAT, ()) == SwapHead(TensorRef.of(Path(head.folder), "head"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("refusal_head", "demur train refusal_head"),
        ("refusal_head:FOLDER@2", "no scale"),
        ("refusal_head:nowhere", "holds no responder"),
        ("fixed_reply:No.,tone=sad", "has no field 'tone'"),
        ("fixed_reply: ", "empty"),
        ("chant", "there is no responder 'chant'"),
    ],
)
def test_what_means_no_responder_is_refused(head: Trained, line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_responder(line.replace("FOLDER", head.folder), tiny().model_id)


def test_a_check_finds_what_a_load_would(head: Trained) -> None:
    check_responder(f"refusal_head:{head.folder}")
    with pytest.raises(ConfigError, match="demur train refusal_head"):
        check_responder("refusal_head")


def test_the_artifact_of_another_model_is_refused(head: Trained) -> None:
    other = replace(tiny().model_id, tokenizer="another")
    with pytest.raises(ModelMismatchError, match="another tokenizer"):
        load_responder(f"refusal_head:{head.folder}", other)


def test_a_detector_is_no_responder(tmp_path: Path, head: Trained) -> None:
    manifest = Path(head.folder) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"kind": "detector"}))
    with pytest.raises(ConfigError, match="holds a detector: expected a responder"):
        Trained.read(Path(head.folder))


def test_a_replaced_file_is_found_out(head: Trained) -> None:
    (Path(head.folder) / TENSORS).write_bytes(b"other")
    with pytest.raises(DataError, match="sha256"):
        Trained.read(Path(head.folder))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    save_trained(
        tmp_path / "empty",
        method="refusal_head",
        model_id=tiny().model_id,
        tensors={"body": np.zeros(3)},
        fields={},
        provenance={},
        card="",
    )
    with pytest.raises(DataError, match=r"no array 'head', only \['body'\]"):
        load_responder(f"refusal_head:{tmp_path / 'empty'}", tiny().model_id)


def test_another_methods_artifact_says_how_to_load_it(head: Trained) -> None:
    manifest = Path(head.folder) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"method": "steering"}))
    with pytest.raises(ConfigError, match="load it as steering:"):
        load_responder(f"refusal_head:{head.folder}", tiny().model_id)


def test_a_flagged_reply_ends_unless_somebody_takes_over(tmp_path: Path) -> None:
    model, adapter = tiny(), lora(tmp_path / "adapter", tiny())
    assert load_mid_reply(None, model.model_id) == EndReply()
    assert load_mid_reply("fixed_reply:Enough.", model.model_id) == ReplyWith("Enough.")
    line = f"adapter:{adapter.folder}@2"
    check_mid_reply(line)
    assert load_mid_reply(line, model.model_id) == UseAdapter(adapter.ref, 2.0, "recompute")
    found = load_mid_reply(line, model.model_id, cache="keep")
    assert found == UseAdapter(adapter.ref, 2.0, "keep")


@pytest.mark.parametrize("line", ["safety_prompt", "refusal_head:nowhere"])
def test_what_cannot_take_over_in_mid_reply_is_refused(line: str) -> None:
    for look in (check_mid_reply, lambda line: load_mid_reply(line, tiny().model_id)):
        with pytest.raises(ConfigError, match="cannot take over in the middle of a reply"):
            look(line)
