"""Reading chats under embeddings in place of a safety prompt, against plain passes."""

import pytest
import torch
from torch import Tensor

from demur.core.errors import DataError
from demur.core.types import Chat, Prompt
from demur.modeling.load import LoadedModel
from demur.modeling.soft_prompts import Placed, SoftPromptReader
from tests.interventions import state_hash
from tests.tiny import NO_SYSTEM, tiny

TEXT = "Be careful."
TEXTS = ("Tell me a story.", "Tell me a much longer story about a heron and a mill.", "Hi")
CHATS = tuple(Chat.from_text(text) for text in TEXTS)


def plain_state(model: LoadedModel, prompt: Prompt) -> Tensor:
    """Return the normed state [d_model] at a prompt's last token, from one whole pass."""
    with torch.no_grad():
        states: Tensor = model.parts.body(torch.tensor([prompt.token_ids]), use_cache=False)[0]
    return states[0, -1]


def placed_in(reader: SoftPromptReader) -> list[Placed]:
    return [reader.place(chat) for chat in CHATS]


def test_under_the_texts_own_embeddings_states_are_those_of_the_text(model: LoadedModel) -> None:
    reader = SoftPromptReader(model, TEXT)
    placed = placed_in(reader)
    found = reader.all_states(placed, reader.initial())
    expected = torch.stack([plain_state(model, of.prompt) for of in placed])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_other_embeddings_are_read_as_in_one_whole_pass(model: LoadedModel) -> None:
    reader = SoftPromptReader(model, TEXT)
    placed = placed_in(reader)
    embeddings = reader.initial() + torch.randn(len(TEXT), 32)
    found = reader.all_states(placed, embeddings)
    for of, state in zip(placed, found, strict=True):
        inputs = model.model.get_input_embeddings()(torch.tensor([of.prompt.token_ids])).clone()
        inputs[0, of.where.start : of.where.stop] = embeddings
        with torch.no_grad():
            whole = model.parts.body(inputs_embeds=inputs, use_cache=False)[0]
        torch.testing.assert_close(state, whole[0, -1], atol=1e-4, rtol=1e-4)


def test_a_state_does_not_depend_on_its_neighbours() -> None:
    reader = SoftPromptReader(tiny(), TEXT)
    placed, embeddings = placed_in(reader), reader.initial()
    together = reader.states(placed, embeddings)
    alone = torch.cat([reader.states([of], embeddings) for of in placed])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_chats_with_system_messages_of_their_own_are_read_apart() -> None:
    reader = SoftPromptReader(tiny(), TEXT)
    chats = [*CHATS, Chat.from_text(TEXTS[0], system="You are kind."), CHATS[0]]
    placed = [reader.place(chat) for chat in chats]
    parts = list(reader.batches(placed))
    assert sorted(row for part in parts for row in part) == list(range(5))
    assert [3] in parts
    expected = torch.stack([plain_state(tiny(), of.prompt) for of in placed])
    found = reader.all_states(placed, reader.initial())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_template_without_a_system_role_holds_the_soft_prompt_in_the_user_turn() -> None:
    model = tiny(template=NO_SYSTEM)
    reader = SoftPromptReader(model, TEXT)
    placed = placed_in(reader)
    found = reader.all_states(placed, reader.initial())
    expected = torch.stack([plain_state(model, of.prompt) for of in placed])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_embeddings_alone(model: LoadedModel) -> None:
    reader, before = SoftPromptReader(model, TEXT), state_hash(model)
    embeddings = reader.initial().requires_grad_()
    reader.states(placed_in(reader), embeddings).square().sum().backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(1) > 0).all()
    assert all(weight.grad is None for weight in model.model.parameters())
    assert state_hash(model) == before


def test_a_batch_has_the_gradient_of_its_prompts_one_by_one() -> None:
    reader = SoftPromptReader(tiny(), TEXT)
    placed = placed_in(reader)

    def gradient(parts: list[list[Placed]]) -> Tensor:
        embeddings = reader.initial().requires_grad_()
        for part in parts:
            reader.states(part, embeddings).pow(3).sum().backward()  # type: ignore[no-untyped-call]
        assert embeddings.grad is not None
        return embeddings.grad

    together, apart = gradient([placed]), gradient([[of] for of in placed])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_a_chat_that_fills_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="takes at most 512"):
        SoftPromptReader(tiny(), TEXT).place(Chat.from_text("x" * 512))
