"""Tentative reads of training sets: as an engine makes them, once a chat, and kept on disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from demur.core.errors import DataError
from demur.core.protocols import whole
from demur.core.readings import Array, Deferred
from demur.core.reads import AppendedTokens, CaptureSpec, PilotTokens, TentativeRead
from demur.core.types import Chat, Message
from demur.engines.transformers import TransformersEngine
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.workflows.capture import Capturer
from tests.guards import read_texts
from tests.interventions import plain_greedy
from tests.tiny import tiny

TEXTS = ("One fox.", "Two foxes went out.", "Name three rivers, please.", "Why is the sky blue?")
CHATS = tuple(Chat.from_text(text) for text in TEXTS)
SURE, PILOT = AppendedTokens("Sure, here", (1, -1)), PilotTokens(3, (-1,), "final_norm")
READS: tuple[TentativeRead, ...] = (SURE, PILOT)


class Passes:
    """Counts the tokens that a model reads."""

    def __init__(self, model: LoadedModel) -> None:
        self.num_tokens = 0
        embeddings = model.model.get_input_embeddings()
        self.hook = embeddings.register_forward_hook(self._count)

    def _count(self, _module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        self.num_tokens += inputs[0].numel()


@pytest.fixture
def passes() -> Iterator[Passes]:
    counted = Passes(tiny())
    yield counted
    counted.hook.remove()


def captured(root: Path, chats: tuple[Chat, ...], *, model: LoadedModel | None = None) -> Deferred:
    """Return the values of the pilot read of chats, as yet unseen."""
    (rows_and_readings,) = Capturer(model or tiny(), root=root).parts(chats, [PILOT])
    values = rows_and_readings[1].values[PILOT]
    assert isinstance(values, Deferred)
    return values


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_states_are_those_that_the_engine_reads(
    architecture: str, read: TentativeRead, tmp_path: Path
) -> None:
    model = tiny(architecture)
    found = whole(Capturer(model, root=tmp_path).parts(CHATS, [read])).pooled(read)
    expected = read_texts(TransformersEngine(model), (read,), TEXTS).pooled(read)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def plain_states(model: LoadedModel, ids: list[int]) -> Array:
    """Return the hidden states [layer, d_model] at the last token, the last one normed."""
    states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return np.stack([layer[0, -1].numpy() for layer in states])


def test_states_are_those_of_plain_transformers(tmp_path: Path) -> None:
    model = tiny()
    readings = whole(Capturer(model, root=tmp_path).parts(CHATS, READS))
    renderer = ChatRenderer(model.tokenizer, name="tiny")
    sure = model.tokenizer(SURE.text, add_special_tokens=False)["input_ids"]
    for row, chat in enumerate(CHATS):
        prompt = renderer.render(chat)
        appended = plain_states(model, [*prompt.token_ids, *sure])
        begun = plain_states(model, [*prompt.token_ids, *plain_greedy(model, prompt, 3)])
        np.testing.assert_allclose(readings.pooled(SURE)[row, 0], appended[2], atol=1e-5)
        np.testing.assert_allclose(readings.pooled(PILOT)[row, 0], begun[-1], atol=1e-5)


def test_only_the_chats_that_are_asked_about_are_read(tmp_path: Path, passes: Passes) -> None:
    values = captured(tmp_path, CHATS)
    assert passes.num_tokens == 0
    _ = values.take(np.array([2])).values
    length = len(ChatRenderer(tiny().tokenizer, name="tiny").render(CHATS[2]))
    assert passes.num_tokens == length + 3


@pytest.mark.parametrize("read", READS)
def test_a_chat_is_read_once_whatever_set_it_stands_in(
    read: TentativeRead, tmp_path: Path, passes: Passes
) -> None:
    first = whole(Capturer(tiny(), root=tmp_path).parts(CHATS, [read])).pooled(read)
    num_tokens = passes.num_tokens
    others = (CHATS[3], CHATS[0], CHATS[3])
    again = whole(Capturer(tiny(), root=tmp_path).parts(others, [read])).pooled(read)
    np.testing.assert_array_equal(again, first[[3, 0, 3]])
    assert passes.num_tokens == num_tokens


def test_another_read_or_model_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for model, read in ((tiny(), PILOT), (tiny(), PilotTokens(2, (-1,))), (tiny("qwen2"), PILOT)):
        whole(Capturer(model, root=tmp_path).parts(CHATS[:1], [read])).pooled(read)
    assert len(list((tmp_path / "tentative").iterdir())) == 3


def test_no_prompt_stands_on_the_disk(tmp_path: Path) -> None:
    _ = captured(tmp_path, CHATS).values
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"rivers" in path.read_bytes() for path in files)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    _ = captured(tmp_path, CHATS).values
    (shard,) = tmp_path.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match="is damaged"):
        _ = captured(tmp_path, CHATS).values


@pytest.mark.parametrize("read", READS)
def test_a_chat_without_room_for_what_follows_is_refused(
    read: TentativeRead, tmp_path: Path
) -> None:
    model = tiny()
    length = len(ChatRenderer(model.tokenizer, name="tiny").render(Chat.from_text("x")))
    full = Chat.from_text("x" * (model.max_tokens - length))
    readings = whole(Capturer(model, root=tmp_path).parts((full,), [read]))
    with pytest.raises(DataError, match=r"the model takes at most 512; shorten the chat"):
        readings.pooled(read)


def test_what_is_read_beside_the_prefill_keeps_the_order_of_the_rows(tmp_path: Path) -> None:
    last = CaptureSpec((-1,))
    chats = tuple(Chat.from_text("word " * (9 - number)) for number in range(8))
    parts = Capturer(tiny(), root=tmp_path).parts(chats, [last, PILOT])
    alone = captured(tmp_path / "alone", chats).values
    for rows, readings in parts:
        np.testing.assert_allclose(readings.pooled(PILOT), alone[rows], atol=1e-5)


def test_a_question_in_place_of_the_chat_is_what_the_text_is_appended_to(tmp_path: Path) -> None:
    wrapped = Capturer(tiny(), root=tmp_path, wrapper="prompted:0")
    found = whole(wrapped.parts(CHATS[:1], [SURE])).pooled(SURE)
    plain = whole(Capturer(tiny(), root=tmp_path).parts(CHATS[:1], [SURE])).pooled(SURE)
    assert np.abs(found - plain).max() > 1e-3


def test_a_chat_is_named_by_all_of_its_turns() -> None:
    turns = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))
    others = (Chat(turns[:1]), Chat(turns), Chat((Message("system", "Hi."), turns[0])))
    assert len({chat.sha256 for chat in others}) == 3
    assert Chat(turns).sha256 == Chat(turns).sha256
