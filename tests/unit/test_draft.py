"""Draft heads: what they guess, how a reply goes on by them, and how they are trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from demur.core.errors import DataError
from demur.core.interventions import Draft, RerankTokens
from demur.core.protocols import Monitor, Request, TokenOut
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.training import Progress, Run
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.modeling.blocks import find_parts
from demur.modeling.draft import DraftHead
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel
from demur.modeling.reranking import Reranking
from demur.trainers._draft_training import Drafted, DraftTraining, draw_tries, ridge
from tests.drafts import READ, drafted, random_draft
from tests.interventions import next_logits, state_hash, stored
from tests.tiny import CONFIGS, D_MODEL, byte_tokenizer, tiny

NUM_TOKENS, TOP_K = 8, 5
FINAL = CaptureSpec((-1,), site="final_norm")
WEIGHTS = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))


def prompt_of(model: LoadedModel, text: str = "Tell me a story about two foxes.") -> Prompt:
    return TransformersEngine(model).render(Chat.from_text(text))


def prompts_of(model: LoadedModel, number: int) -> list[Prompt]:
    return [prompt_of(model, f"Tell me {n} things about an owl.") for n in range(number)]


def tokens_of(engine: TransformersEngine, request: Request) -> list[int]:
    return [event.token_id for event in engine.run([request]) if isinstance(event, TokenOut)]


def request(
    prompt: Prompt, intervention: RerankTokens, *, monitor: Monitor | None = None
) -> Request:
    return Request(
        "0",
        prompt,
        Sampling(max_tokens=NUM_TOKENS),
        decide=lambda _: intervention,
        monitor=monitor,
    )


@torch.inference_mode()
def state_at(model: LoadedModel, ids: list[int], read: CaptureSpec) -> Tensor:
    """Return the state of the last token, as the model alone has it."""
    states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    state: Tensor = states[-1 if read.site == "final_norm" else read.layers[0] + 1][0, -1]
    return state


@torch.inference_mode()
def guessed(
    model: LoadedModel, head: DraftHead, pairs: list[tuple[Tensor, int]], *, start: int
) -> Tensor:
    """Return the state after the last of some tokens, by one causal pass without a cache."""
    embed = model.model.get_input_embeddings()
    joined = [head.join(torch.cat([state, embed(torch.tensor(token))])) for state, token in pairs]
    positions = torch.arange(start, start + len(pairs))[None]
    output = head.body(inputs_embeds=torch.stack(joined)[None], position_ids=positions)
    state: Tensor = output.last_hidden_state[0, -1]
    return state


@pytest.mark.parametrize("read", [READ, FINAL])
def test_a_reply_by_a_draft_is_that_of_a_loop_without_a_cache(
    model: LoadedModel, read: CaptureSpec, tmp_path: Path
) -> None:
    prompt, head = prompt_of(model), random_draft(model, read)
    ids = list(prompt.token_ids)
    pairs: list[Any] = []
    for _ in range(NUM_TOKENS):
        before = state_at(model, ids, read)
        candidates = next_logits(model, ids).topk(TOP_K).indices.tolist()
        scores = [
            float(guessed(model, head, [*pairs, (before, token)], start=len(prompt)) @ WEIGHTS)
            for token in candidates
        ]
        token = candidates[int(np.argmax(scores))]
        pairs.append((before, token))
        ids.append(token)
        if token in model.end_token_ids:
            break
    rerank = RerankTokens(
        TOP_K, read, stored(tmp_path, "weights", WEIGHTS), draft=drafted(model, tmp_path, read)
    )
    assert tokens_of(TransformersEngine(model), request(prompt, rerank)) == ids[len(prompt) :]


def test_under_a_draft_the_body_reads_each_token_once(tmp_path: Path) -> None:
    model, num_read = tiny(), []
    rerank = RerankTokens(
        TOP_K, READ, stored(tmp_path, "weights", WEIGHTS), draft=drafted(model, tmp_path)
    )
    prompt = prompt_of(model)
    block = model.parts.blocks[0]
    with block.register_forward_hook(lambda _m, inputs, _o: num_read.append(inputs[0].shape[1])):
        tokens = tokens_of(TransformersEngine(model), request(prompt, rerank))
    # The prompt, its last token for its state, and every token but the last.
    assert num_read == [len(prompt), 1, *[1] * (len(tokens) - 1)]


def test_a_monitor_sees_the_states_of_the_model_and_not_the_guesses(tmp_path: Path) -> None:
    model, seen = tiny(), []

    def watch(states: Array) -> None:
        seen.append(states[0])

    monitor = Monitor(CaptureSpec((1,), positions="reply"), watch)
    rerank = RerankTokens(
        TOP_K, READ, stored(tmp_path, "weights", WEIGHTS), draft=drafted(model, tmp_path)
    )
    prompt = prompt_of(model)
    tokens = tokens_of(TransformersEngine(model), request(prompt, rerank, monitor=monitor))
    ids = [*prompt.token_ids, *tokens]
    expected = [
        state_at(model, ids[: len(prompt) + n + 1], CaptureSpec((1,))) for n in range(len(tokens))
    ]
    np.testing.assert_allclose(seen, torch.stack(expected), atol=1e-5)


def test_a_draft_of_another_model_is_refused(tmp_path: Path) -> None:
    own, other = drafted(tiny(), tmp_path / "own"), drafted(tiny("gpt2"), tmp_path / "other")
    weights = stored(tmp_path, "weights", WEIGHTS)
    for draft, problem in (
        (other, "train it again on this model"),
        (Draft(own.tensors[1:]), "lacks ['draft.join']"),
    ):
        engine = TransformersEngine(tiny())
        with pytest.raises(DataError) as caught:
            engine.prepare([RerankTokens(TOP_K, READ, weights, draft=draft)])
        assert problem in str(caught.value)


def test_a_draft_leaves_the_model_as_it_is(model: LoadedModel) -> None:
    before = state_hash(model)
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    random_draft(model)
    assert torch.equal(torch.randn(3), expected)
    assert state_hash(model) == before


def planted_model() -> LoadedModel:
    """Return a model whose tokens see only themselves, and only in its last block."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.float32)
    model.eval().requires_grad_(False)
    parts = find_parts(model)
    for number, block in enumerate(parts.blocks):
        block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
        if number < len(parts.blocks) - 1:
            block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]
    tokenizer = byte_tokenizer()
    return LoadedModel(model, tokenizer, parts, identify(model, tokenizer, name="planted"))


def training(model: LoadedModel, *, epochs: int = 1, lr: float = 1e-3) -> DraftTraining:
    weights = WEIGHTS.numpy()
    return DraftTraining(model, FINAL, weights, top_k=4, num_tokens=6, epochs=epochs, lr=lr)


def test_states_that_are_linear_in_what_is_joined_are_guessed_before_any_step() -> None:
    model = planted_model()
    found = training(model, lr=1e-9).run(prompts_of(model, 30), Run())
    assert found.metrics["draft_error_untrained"] < 0.02
    assert found.metrics["draft_agreement_untrained"] == 1


def test_training_lowers_the_loss_and_leaves_the_model_alone() -> None:
    model, told = tiny(), []

    def report(progress: Progress) -> None:
        told.append(progress)

    before = state_hash(model)
    found = training(model, epochs=8).run(prompts_of(model, 16), Run(report=report))
    assert np.mean(found.curve[-14:]) < 0.8 * np.mean(found.curve[:14])
    assert found.metrics["draft_error"] < found.metrics["draft_error_untrained"]
    assert state_hash(model) == before
    assert [told[-1].stage, told[-1].done, told[-1].total] == ["draft", 112, 112]


def test_the_same_seed_trains_the_same_draft() -> None:
    first, second = (trained_again() for _ in range(2))
    for name, array in first.tensors.items():
        np.testing.assert_array_equal(array, second.tensors[name])


def trained_again() -> Drafted:
    return training(tiny()).run(prompts_of(tiny(), 4), Run(seed=1))


def test_tries_are_the_states_of_each_candidate(model: LoadedModel) -> None:
    prompt = prompt_of(model)
    tries = draw_tries(model, prompt, Reranking(3, READ, WEIGHTS), 4)
    assert tries.position == len(prompt)
    ids = list(prompt.token_ids)
    for step, candidates in enumerate(tries.ids.tolist()):
        assert candidates == next_logits(model, ids).topk(3).indices.tolist()
        np.testing.assert_allclose(tries.before[step], state_at(model, ids, READ), atol=1e-5)
        for number, token in enumerate(candidates):
            states, inputs = tries.states[step, number], tries.block_inputs[step, number]
            np.testing.assert_allclose(states, state_at(model, [*ids, token], READ), atol=1e-5)
            below = state_at(model, [*ids, token], CaptureSpec((1,)))
            np.testing.assert_allclose(inputs, below, atol=1e-5)
        ids.append(candidates[int(tries.chosen[step])])


def test_candidates_are_trained_under_the_mask_that_they_are_guessed_under() -> None:
    model = tiny()
    of = training(model)
    tries = draw_tries(model, prompt_of(model), Reranking(4, FINAL, WEIGHTS), 6)
    together = of._guesses(tries)
    cache = DynamicCache()
    for step in range(len(tries.ids)):
        guesses, longer = of._head.guess(
            tries.before[step], tries.ids[step].tolist(), cache, position=tries.position + step
        )
        np.testing.assert_allclose(together[step], guesses, atol=1e-5)
        chosen = int(tries.chosen[step])
        for layer in longer.layers:
            columns = [*range(step), step + chosen]
            layer.keys, layer.values = layer.keys[:, :, columns], layer.values[:, :, columns]
        cache = longer


def test_the_linear_map_is_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    inputs, wanted = rng.normal(size=(50, 6)) * [1, 2, 3, 4, 5, 60], rng.normal(size=(50, 3))
    found = ridge(torch.from_numpy(inputs), torch.from_numpy(wanted), share=0.1)
    scale = np.sqrt((inputs**2).sum(0))
    expected = Ridge(alpha=0.1, fit_intercept=False).fit(inputs / scale, wanted).coef_ / scale
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
