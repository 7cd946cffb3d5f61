"""What the transformers engine makes of interventions, against plain loops without a cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from demur.core.errors import ConfigError
from demur.core.interventions import (
    AddVectors,
    Intervention,
    PrependEmbeddings,
    PrependText,
    RerankTokens,
    SwapHead,
)
from demur.core.protocols import Done, TokenOut
from demur.core.reads import AppendedTokens, CaptureSpec, PilotTokens, read_from_dict
from demur.core.tensors import TensorRef
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel
from tests.drafts import drafted
from tests.interventions import (
    NUM_TOKENS,
    TEXT,
    drawn,
    edited,
    events_of,
    plain_greedy,
    prompt_of,
    reply,
    request,
    state_hash,
    stored,
    tokens_of,
)
from tests.tiny import D_MODEL, tiny


class Edit:
    """Adds a vector to the states from a position on."""

    def __init__(self, first: int, vector: Tensor, gate: Tensor | None = None) -> None:
        self._first, self._vector, self._gate = first, vector, gate

    def __call__(self, states: Tensor) -> Tensor:
        changed = states.clone()
        amount: Tensor | float = 1.0
        if self._gate is not None:
            amount = (states[self._first :] @ self._gate)[:, None]
        changed[self._first :] += amount * self._vector
        return changed


@pytest.mark.parametrize("where", ["last", "user_end"])
def test_vectors_are_added_as_in_a_pass_over_everything(
    model: LoadedModel, where: str, tmp_path: Path
) -> None:
    prompt, vectors = prompt_of(model), drawn([2, D_MODEL])
    intervention = AddVectors(
        (1, -1),
        stored(tmp_path, "vectors", vectors),
        scale=3.0,
        from_position=where,  # type: ignore[arg-type]  # a name of the parameters
    )
    first = len(prompt) - 1 if where == "last" else prompt.spans_of("user")[-1].stop - 1
    with edited(model, {1: Edit(first, 3 * vectors[0]), 3: Edit(first, 3 * vectors[1])}):
        expected = plain_greedy(model, prompt, NUM_TOKENS)
    assert reply(model, prompt, intervention) == expected
    assert expected != plain_greedy(model, prompt, NUM_TOKENS)


def test_gates_weigh_what_a_state_gets(model: LoadedModel, tmp_path: Path) -> None:
    prompt, vector, gate = (
        prompt_of(model),
        drawn([1, D_MODEL], scale=9),
        drawn([1, D_MODEL], seed=1),
    )
    intervention = AddVectors(
        (2,), stored(tmp_path, "vectors", vector), gates=stored(tmp_path, "gates", gate)
    )
    with edited(model, {2: Edit(len(prompt) - 1, vector[0], gate[0])}):
        expected = plain_greedy(model, prompt, NUM_TOKENS)
    assert reply(model, prompt, intervention) == expected


def test_a_scale_of_nothing_leaves_the_prefill_as_it_is(tmp_path: Path) -> None:
    model = tiny()
    prompt = prompt_of(model)
    intervention = AddVectors((0,), stored(tmp_path, "v", drawn([1, D_MODEL])), scale=0.0)
    assert reply(model, prompt, intervention) == reply(model, prompt, None)
    assert intervention.keeps(prompt).positions_before == len(prompt)


def test_another_head_draws_from_the_same_states(model: LoadedModel, tmp_path: Path) -> None:
    prompt = prompt_of(model)
    own = model.model.get_output_embeddings().weight
    head = own + drawn(own.shape, scale=0.5)
    expected = plain_greedy(model, prompt, NUM_TOKENS, head=head)
    assert reply(model, prompt, SwapHead(stored(tmp_path, "head", head))) == expected
    assert expected != reply(model, prompt, None)


def test_a_head_of_a_model_that_bends_its_logits_is_bent_too(tmp_path: Path) -> None:
    model = tiny("gemma3")
    config = model.model.config
    config.final_logit_softcapping, before = 0.5, config.final_logit_softcapping
    try:
        prompt = prompt_of(model)
        own = model.model.get_output_embeddings().weight
        ref = stored(tmp_path, "head", own.clone())
        found = [
            e.logprob
            for e in events_of(TransformersEngine(model), [request(prompt, SwapHead(ref))])
            if isinstance(e, TokenOut)
        ]
        plain = [
            e.logprob
            for e in events_of(TransformersEngine(model), [request(prompt, None)])
            if isinstance(e, TokenOut)
        ]
    finally:
        config.final_logit_softcapping = before
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_a_model_that_does_something_unknown_to_its_logits_is_refused(tmp_path: Path) -> None:
    model = tiny()
    prompt = prompt_of(model)
    own = model.model.get_output_embeddings().weight
    ref = stored(tmp_path, "head", own.clone())

    def squared(_module: object, _inputs: object, output: "object") -> object:
        output.logits = output.logits * 7  # type: ignore[attr-defined]  # a model's output
        return output

    with model.model.register_forward_hook(squared):
        events = events_of(TransformersEngine(model), [request(prompt, SwapHead(ref))])
    assert isinstance(events[-1], Done)
    assert "changes its logits" in str(events[-1].error)


def test_the_texts_own_embeddings_are_the_text(model: LoadedModel, tmp_path: Path) -> None:
    text = "Be careful with what you say."
    prompt = prompt_of(model)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        embeddings = model.model.get_input_embeddings()(torch.tensor(ids))
    ref = stored(tmp_path, "embeddings", embeddings.clone())
    assert reply(model, prompt, PrependEmbeddings(text, ref)) == reply(
        model, prompt, PrependText(text)
    )


def test_other_embeddings_stand_in_the_same_place(tmp_path: Path) -> None:
    model, text = tiny(), "Be careful."
    chat = Chat.from_text(TEXT, system="You are kind.")
    prompt = TransformersEngine(model).render(chat)
    embeddings = drawn([len(text), D_MODEL], scale=2)
    intervention = PrependEmbeddings(text, stored(tmp_path, "embeddings", embeddings))
    longer = TransformersEngine(model).render(chat.with_safety_prompt(text))
    ids = list(longer.token_ids)
    of_text = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)] == of_text)
    with torch.inference_mode():
        states = model.model.get_input_embeddings()(torch.tensor([ids])).clone()
        states[0, start : start + len(text)] = embeddings
        first = int(model.model(inputs_embeds=states).logits[0, -1].argmax())
    assert reply(model, prompt, intervention)[0] == first


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Intervention | None]:
    own = tiny().model.get_output_embeddings().weight
    weights = stored(tmp_path, "weights", drawn([D_MODEL]))
    vectors = stored(tmp_path, "vectors", drawn([1, D_MODEL], scale=9))
    return {
        "0": None,
        "1": AddVectors((1,), vectors),
        "2": SwapHead(stored(tmp_path, "head", own + drawn(own.shape))),
        "3": RerankTokens(4, CaptureSpec((2,)), weights),
        "7": RerankTokens(4, CaptureSpec((2,)), weights, draft=drafted(tiny(), tmp_path)),
        "4": PrependText("Be careful."),
        "5": AddVectors((1,), vectors, scale=-1.0, from_position="user_end"),
        "6": None,
    }


def test_rows_of_a_mixed_batch_are_as_alone(many: dict[str, Intervention | None]) -> None:
    model = tiny()
    prompts = {id: prompt_of(model, f"{TEXT} {'And then? ' * int(id)}") for id in many}
    requests = [request(prompts[id], of, id=id, num_tokens=20 + int(id)) for id, of in many.items()]
    together = events_of(TransformersEngine(model, max_batch=8), requests)
    for id, of in many.items():
        alone = events_of(
            TransformersEngine(model),
            [request(prompts[id], of, id=id, num_tokens=20 + int(id))],
        )
        assert tokens_of(together, id) == tokens_of(alone, id)


def test_nothing_is_left_behind(many: dict[str, Intervention | None], tmp_path: Path) -> None:
    model = tiny()
    before = state_hash(model)
    wrong = stored(tmp_path, "wrong", drawn([3, D_MODEL]))
    failing: list[Intervention] = [
        AddVectors((1,), wrong),
        AddVectors((99,), stored(tmp_path, "v", drawn([1, D_MODEL]))),
        SwapHead(wrong),
        PrependEmbeddings("Be careful.", wrong),
        RerankTokens(2, CaptureSpec((99,)), stored(tmp_path, "w", drawn([D_MODEL]))),
    ]
    requests = [request(prompt_of(model), of, id=id) for id, of in many.items()]
    requests += [request(prompt_of(model), of, id=f"wrong {n}") for n, of in enumerate(failing)]
    events = events_of(TransformersEngine(model), requests)
    failed = {e.id for e in events if isinstance(e, Done) and e.reason == "error"}
    assert failed == {f"wrong {n}" for n in range(len(failing))}
    assert state_hash(model) == before


def test_a_tensor_that_was_replaced_is_refused(tmp_path: Path) -> None:
    ref = stored(tmp_path, "vectors", drawn([1, D_MODEL]))
    stored(tmp_path, "vectors", drawn([1, D_MODEL], seed=1))
    events = events_of(
        TransformersEngine(tiny()), [request(prompt_of(tiny()), AddVectors((0,), ref))]
    )
    assert isinstance(events[-1], Done)
    assert "was replaced" in str(events[-1].error)


def test_a_tensor_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an artifact"):
        TensorRef.of(tmp_path, "vectors")


def test_what_no_engine_could_carry_out_is_refused(tmp_path: Path) -> None:
    ref = stored(tmp_path, "vectors", drawn([1, D_MODEL]))
    for make, message in (
        (lambda: AddVectors((), ref), "expected one or more"),
        (lambda: AddVectors((1, 1), ref), "each once"),
        (lambda: AddVectors((1,), ref, from_position="first"), "expected one of"),  # type: ignore[arg-type]
        (lambda: RerankTokens(0, CaptureSpec((1,)), ref), "expected 1 or more"),
        (lambda: RerankTokens(2, CaptureSpec((1, 2)), ref), "expected one layer"),
        (lambda: RerankTokens(2, CaptureSpec((1,)), ref, sign=0), "expected -1 or 1"),  # type: ignore[arg-type]
        (lambda: AppendedTokens("", (1,)), "is empty"),
        (lambda: AppendedTokens("Sure", ()), "names no layers"),
        (lambda: PilotTokens(0, (1,)), "expected 1 or more"),
        (lambda: read_from_dict({"pilot_tokens": {"tokens": 3}}), "not a read"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_a_safety_prompt_that_fills_the_context_is_an_error(tmp_path: Path) -> None:
    of = request(prompt_of(tiny()), PrependText("Be careful. " * 60))
    events = events_of(TransformersEngine(tiny()), [of])
    assert isinstance(events[-1], Done)
    assert "with its safety prompt" in str(events[-1].error)
