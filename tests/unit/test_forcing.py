"""Likelihoods of given replies through the engine, against the tokens that the engine draws."""

from pathlib import Path

import numpy as np
import pytest
import torch

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import (
    AddVectors,
    EndReply,
    Intervention,
    PrependEmbeddings,
    PrependText,
    ReplyWith,
    SwapHead,
)
from demur.core.protocols import Request, TokenOut
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.engines.transformers.forcing import Forcing, forced_log_probs
from demur.engines.transformers.passes import Passes
from demur.modeling.likelihood import Likelihood
from demur.modeling.load import LoadedModel
from tests.interventions import state_hash, stored
from tests.tiny import CONFIGS, D_MODEL, tiny

CHAT = Chat.from_text("Tell me of two foxes and an owl.")
REPLIES = ("A", "B", "Here is a fox.", "No.")
SAFETY = "Be kind."
NUM_TOKENS = 6


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def intervention_of(name: str, folder: Path, model: LoadedModel) -> Intervention:
    if name == "vectors":
        vectors = stored(folder, "vectors", drawn(2, D_MODEL))
        return AddVectors(layers=(1, 2), vectors=vectors, scale=2.0)
    if name == "head":
        own = model.model.get_output_embeddings().weight.detach()
        return SwapHead(stored(folder, "weights", own + drawn(*own.shape)))
    if name == "embeddings":
        engine = TransformersEngine(model)
        longer = engine.render(CHAT.with_safety_prompt(SAFETY))
        where = engine._renderer.safety_prompt_span(longer, SAFETY)
        rows = stored(folder, "embeddings", drawn(where.stop - where.start, D_MODEL))
        return PrependEmbeddings(SAFETY, rows)
    return PrependText(SAFETY)


def greedy(
    engine: TransformersEngine, prompt: Prompt, intervention: Intervention | None
) -> list[TokenOut]:
    sampling = Sampling(max_tokens=NUM_TOKENS)
    request = Request("0", prompt, sampling, decide=lambda _: intervention)
    return [event for event in engine.run([request]) if isinstance(event, TokenOut)]


@pytest.mark.parametrize("shape", sorted(CONFIGS))
def test_without_an_intervention_values_are_those_of_the_model_itself(shape: str) -> None:
    model = tiny(shape)
    engine = TransformersEngine(model)
    found = Forcing(engine).log_probs(engine.render(CHAT), REPLIES)
    expected = Likelihood(model).log_probs(CHAT, REPLIES)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", ["vectors", "head", "embeddings", "text"])
@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_a_reply_that_is_drawn_under_an_intervention_is_as_likely_as_it_was_when_drawn(
    shape: str, name: str, tmp_path: Path
) -> None:
    model = tiny(shape)
    engine = TransformersEngine(model)
    prompt = engine.render(CHAT)
    intervention = intervention_of(name, tmp_path, model)
    tokens = greedy(engine, prompt, intervention)
    assert tokens != greedy(engine, prompt, None)
    start = Forcing(engine).start(prompt, intervention)
    ids = [token.token_id for token in tokens]
    found, shorter = forced_log_probs(Passes(engine.loaded), start, [ids, ids[:2]], max_tokens=512)
    np.testing.assert_allclose(found, [token.logprob for token in tokens], atol=1e-4)
    np.testing.assert_allclose(shorter, found[:2], atol=1e-4)


def test_an_intervention_changes_the_values_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tiny("llama")
    engine = TransformersEngine(model)
    prompt, before = engine.render(CHAT), state_hash(model)
    own = Forcing(engine).log_probs(prompt, REPLIES)
    intervention = intervention_of("vectors", tmp_path, model)
    changed = Forcing(engine).log_probs(prompt, REPLIES, intervention=intervention)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(own, changed, strict=True))
    again = Forcing(engine).log_probs(prompt, REPLIES)
    assert all(np.array_equal(a, b) for a, b in zip(own, again, strict=True))
    assert state_hash(model) == before


def test_a_start_is_not_changed() -> None:
    engine = TransformersEngine(tiny("qwen2"))
    prompt = engine.render(CHAT)
    start = Forcing(engine).start(prompt, None)
    first = forced_log_probs(Passes(engine.loaded), start, [[5, 6, 7], [8]], max_tokens=512)
    assert start.cache.get_seq_length() == len(prompt)
    second = forced_log_probs(Passes(engine.loaded), start, [[5, 6, 7], [8]], max_tokens=512)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("intervention", [ReplyWith("No."), EndReply()])
def test_what_draws_no_tokens_has_no_likelihoods(intervention: Intervention) -> None:
    engine = TransformersEngine(tiny("qwen2"))
    with pytest.raises(CapabilityError, match=type(intervention).__name__):
        Forcing(engine).log_probs(engine.render(CHAT), REPLIES, intervention=intervention)


def test_no_reply_an_empty_one_and_one_beyond_the_context_are_errors() -> None:
    engine = TransformersEngine(tiny("qwen2"))
    prompt = engine.render(CHAT)
    with pytest.raises(DataError, match="no replies"):
        Forcing(engine).log_probs(prompt, [])
    with pytest.raises(DataError, match="empty"):
        Forcing(engine).log_probs(prompt, ["A", ""])
    with pytest.raises(DataError, match="takes at most"):
        Forcing(engine).log_probs(prompt, ["a" * 600])
    left = engine.max_tokens - len(prompt)
    with pytest.raises(DataError, match="a reply of"):
        Forcing(engine).log_probs(prompt, ["a" * left], intervention=PrependText(SAFETY))
