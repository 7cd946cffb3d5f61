"""Tokens that are tried before one is drawn: reranked candidates, appended words, pilot tokens."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from demur.core.interventions import (
    RerankTokens,
)
from demur.core.protocols import Monitor
from demur.core.readings import Array, Readings
from demur.core.reads import AppendedTokens, CaptureSpec, PilotTokens, Read, read_from_dict
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel
from tests.drafts import drafted
from tests.interventions import (
    NUM_TOKENS,
    drawn,
    events_of,
    next_logits,
    plain_greedy,
    prompt_of,
    reply,
    request,
    stored,
    tokens_of,
)
from tests.tiny import D_MODEL, tiny


def state_after(model: LoadedModel, ids: Sequence[int], layer: int) -> Tensor:
    with torch.inference_mode():
        output = model.model(torch.tensor([list(ids)]), output_hidden_states=True)
    states: Tensor = output.hidden_states[layer + 1][0, -1]
    return states


@pytest.mark.parametrize("lm_weight", [0.0, 0.3])
def test_tokens_are_reranked_as_if_each_were_tried_alone(
    model: LoadedModel, lm_weight: float, tmp_path: Path
) -> None:
    prompt, weights, read = prompt_of(model), drawn([D_MODEL]), CaptureSpec((2,))
    intervention = RerankTokens(
        5, read, stored(tmp_path, "weights", weights), sign=-1, lm_weight=lm_weight
    )
    ids = list(prompt.token_ids)
    for _ in range(NUM_TOKENS):
        logprobs = torch.log_softmax(next_logits(model, ids), -1)
        candidates = logprobs.topk(5).indices.tolist()
        scores = [
            lm_weight * float(logprobs[c]) - float(state_after(model, [*ids, c], 2) @ weights)
            for c in candidates
        ]
        ids.append(candidates[int(np.argmax(scores))])
        if ids[-1] in model.end_token_ids:
            break
    assert reply(model, prompt, intervention) == ids[len(prompt) :]


def test_a_choice_of_one_is_greedy(model: LoadedModel, tmp_path: Path) -> None:
    ref = stored(tmp_path, "weights", drawn([D_MODEL]))
    prompt = prompt_of(model)
    assert reply(model, prompt, RerankTokens(1, CaptureSpec((1,)), ref)) == reply(
        model, prompt, None
    )


def test_a_large_weight_of_what_is_likely_is_greedy(model: LoadedModel, tmp_path: Path) -> None:
    ref = stored(tmp_path, "weights", drawn([D_MODEL]))
    prompt = prompt_of(model)
    rerank = RerankTokens(8, CaptureSpec((1,)), ref, lm_weight=1e6)
    assert reply(model, prompt, rerank) == reply(model, prompt, None)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_direction_picks_its_candidate_and_its_opposite_the_other(
    model: LoadedModel, sign: Literal[1, -1], tmp_path: Path
) -> None:
    prompt = prompt_of(model)
    pair = next_logits(model, prompt.token_ids).topk(2).indices.tolist()
    first, second = (state_after(model, [*prompt.token_ids, token], 2) for token in pair)
    ref = stored(tmp_path, "weights", second - first)
    rerank = RerankTokens(2, CaptureSpec((2,)), ref, sign=sign)
    assert reply(model, prompt, rerank)[0] == (pair[1] if sign == 1 else pair[0])


def test_the_head_sees_one_candidate_a_token(model: LoadedModel, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    head = model.model.get_output_embeddings()
    rerank = RerankTokens(6, CaptureSpec((2,)), stored(tmp_path, "weights", drawn([D_MODEL])))
    with head.register_forward_hook(lambda _head, inputs, _logits: seen.append(inputs[0])):
        tokens = reply(model, prompt_of(model), rerank)
    assert [states.shape for states in seen] == [(1, 1, D_MODEL)] * (len(tokens) + 1)
    # With the strides of a slice torch copies the whole weight.
    assert all(states.stride()[0] == D_MODEL for states in seen)


def test_rows_that_are_reranked_together_are_as_those_alone(
    model: LoadedModel, tmp_path: Path
) -> None:
    engine, read = TransformersEngine(model), CaptureSpec((2,))
    weights = stored(tmp_path, "weights", drawn([D_MODEL]))
    rerank = RerankTokens(5, read, weights, sign=-1, lm_weight=0.1)
    ways: list[RerankTokens | None] = [
        rerank,
        replace(rerank, top_k=3),
        None,
        replace(rerank, draft=drafted(model, tmp_path)),
        replace(rerank, top_k=1),
        replace(rerank, sign=1),
    ]
    prompts = [prompt_of(model, f"Tell me {'many ' * 3 * n}stories.") for n in range(len(ways))]
    requests = [
        request(prompt, way, id=str(n), num_tokens=4 + 2 * n)
        for n, (prompt, way) in enumerate(zip(prompts, ways, strict=True))
    ]
    alone = [tokens_of(events_of(engine, [of]), of.id) for of in requests]
    together = events_of(engine, requests)
    assert [tokens_of(together, of.id) for of in requests] == alone
    assert len({tuple(tokens[:4]) for tokens in alone}) > 3


def test_rows_that_are_reranked_together_share_a_pass(tmp_path: Path) -> None:
    model, shapes = tiny(), []
    rerank = RerankTokens(6, CaptureSpec((2,)), stored(tmp_path, "weights", drawn([D_MODEL])))
    prompts = [prompt_of(model, f"Why {'so ' * n}?") for n in range(3)]
    requests = [request(prompt, rerank, id=str(n)) for n, prompt in enumerate(prompts)]
    head = model.model.get_output_embeddings()
    with head.register_forward_hook(lambda _head, inputs, _logits: shapes.append(inputs[0].shape)):
        events_of(TransformersEngine(model), requests)
    assert [len(shape) for shape in shapes] == [3] * len(shapes)
    assert (3, 1, D_MODEL) in shapes
    assert max(shape[1] for shape in shapes) == 1


def read_of(model: LoadedModel, read: Read, *, num_tokens: int = 3) -> tuple[Array, list[int]]:
    """Return the values of a read as a detector sees them, and the reply that went on."""
    seen: list[Array] = []

    def decide(readings: Readings) -> None:
        assert not isinstance(read, CaptureSpec)
        seen.append(readings.pooled(read))  # type: ignore[arg-type]  # a tentative read

    of = replace(
        request(prompt_of(model), None, num_tokens=num_tokens), reads=(read,), decide=decide
    )
    tokens = tokens_of(events_of(TransformersEngine(model), [of]))
    return seen[0], tokens


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_an_appended_word_is_read_on_a_fork(model: LoadedModel, num_tokens: int) -> None:
    prompt = prompt_of(model)
    values, tokens = read_of(model, AppendedTokens("Sure", (0, 2)), num_tokens=num_tokens)
    ids = [*prompt.token_ids, *model.tokenizer("Sure", add_special_tokens=False)["input_ids"]]
    expected = [state_after(model, ids, layer).numpy() for layer in (0, 2)]
    np.testing.assert_allclose(values[0], expected, atol=1e-5)
    assert tokens == plain_greedy(model, prompt, num_tokens)


def test_pilot_tokens_are_those_of_the_reply(model: LoadedModel) -> None:
    prompt = prompt_of(model)
    values, tokens = read_of(model, PilotTokens(3, (1,)), num_tokens=4)
    expected = state_after(model, [*prompt.token_ids, *tokens[:3]], 1).numpy()
    np.testing.assert_allclose(values[0, 0], expected, atol=1e-5)
    assert tokens == plain_greedy(model, prompt, 4)


def test_a_monitor_sees_the_reply_that_was_reranked(tmp_path: Path) -> None:
    model, read, seen = tiny(), CaptureSpec((1,), positions="reply"), []
    rerank = RerankTokens(4, CaptureSpec((2,)), stored(tmp_path, "weights", drawn([D_MODEL])))

    def watch(states: Array) -> None:
        seen.append(states[0])

    prompt = prompt_of(model)
    of = replace(request(prompt, rerank, num_tokens=6), monitor=Monitor(read, watch))
    tokens = tokens_of(events_of(TransformersEngine(model), [of]))
    assert len(seen) == len(tokens) == 6
    expected = [
        state_after(model, [*prompt.token_ids, *tokens[: n + 1]], 1).numpy() for n in range(6)
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize(
    "read", [AppendedTokens("Sure", (1, -1)), PilotTokens(3, (-1,), "mlp_out")]
)
def test_tentative_reads_survive_json(read: AppendedTokens | PilotTokens) -> None:
    assert read_from_dict(json.loads(json.dumps(read.as_dict()))) == read
