"""The transformers engine computes what the model alone would, in one prefill, on every shape."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from demur.core.protocols import Event, Request, TokenOut
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel
from tests.interventions import state_hash
from tests.tiny import CONFIGS, NO_SYSTEM, tiny

TEXTS = ("Tell me about two foxes and an owl.", "Why?", "Name five rivers of Europe, please!")
READS = (CaptureSpec((0, 1, -1)), CaptureSpec((2,), positions="user", pool="mean"))
GREEDY = Sampling(max_tokens=12)

Counts = dict[str, list[int]]


def request_of(engine: TransformersEngine, text: str, request_id: str = "0") -> Request:
    return Request(request_id, engine.render(Chat.from_text(text)), GREEDY)


def drawn(engine: TransformersEngine, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    events: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for event in engine.run(requests):
        if isinstance(event, TokenOut):
            events[event.id].append(event)
    return events


def ids(events: Sequence[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenOut)]


def generated(loaded: LoadedModel, token_ids: Sequence[int]) -> list[int]:
    prompt = torch.tensor([token_ids])
    out = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
        pad_token_id=257,
    )
    return [int(token) for token in out[0, len(token_ids) :]]


@contextmanager
def counting(loaded: LoadedModel) -> Iterator[Counts]:
    """Record the tokens of each call of each block, and the rows of each call of the LM head."""
    counts: Counts = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor | tuple[Tensor]], None]:
        def hook(_m: nn.Module, _i: tuple[Tensor, ...], output: Tensor | tuple[Tensor]) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            counts.setdefault(name, []).append(states.shape[0] * states.shape[1])

        return hook

    modules = {f"block {n}": block for n, block in enumerate(loaded.parts.blocks)}
    modules["head"] = loaded.model.get_output_embeddings()
    handles = [m.register_forward_hook(count(name)) for name, m in modules.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_decoding_is_that_of_generate(architecture: str) -> None:
    loaded = tiny(architecture)
    engine = TransformersEngine(loaded)
    for text in TEXTS:
        request = request_of(engine, text)
        expected = generated(loaded, request.prompt.token_ids)
        assert ids(drawn(engine, [replace(request, reads=READS)])["0"]) == expected


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_mixed_batch_draws_what_each_row_draws_alone(architecture: str) -> None:
    engine = TransformersEngine(tiny(architecture), max_batch=3)
    texts = (*TEXTS, TEXTS[0] * 3)
    requests = [request_of(engine, text, str(n)) for n, text in enumerate(texts)]
    together = drawn(engine, requests)
    for request in requests:
        assert ids(together[request.id]) == ids(drawn(engine, [request])[request.id])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_states_read_in_the_prefill_are_output_hidden_states(architecture: str) -> None:
    loaded = tiny(architecture)
    engine = TransformersEngine(loaded)
    seen: list[Readings] = []
    request = replace(request_of(engine, TEXTS[0]), reads=READS[:1], decide=seen.append)
    drawn(engine, [request])
    with torch.no_grad():
        output = loaded.model(torch.tensor([request.prompt.token_ids]), output_hidden_states=True)
    for index, layer in enumerate((0, 1)):
        expected = output.hidden_states[layer + 1][0, -1].numpy()
        np.testing.assert_allclose(seen[0].pooled(READS[0])[0, index], expected, atol=1e-6)


def test_a_guarded_request_costs_the_calls_and_tokens_of_an_unguarded_one() -> None:
    loaded = tiny()
    engine = TransformersEngine(loaded)
    request = request_of(engine, TEXTS[0])
    seen: list[Readings] = []
    with counting(loaded) as unguarded:
        drawn(engine, [request])
    with counting(loaded) as guarded:
        drawn(engine, [replace(request, reads=READS, decide=seen.append)])
    assert len(seen) == 1
    assert guarded == unguarded
    assert guarded["block 0"][:2] == [len(request.prompt), 1]
    assert guarded["head"][0] == 1


def test_a_scored_request_runs_no_head_and_no_block_below_its_deepest_read() -> None:
    loaded = tiny()
    engine = TransformersEngine(loaded)
    request = replace(
        request_of(engine, TEXTS[0]), sampling=Sampling(max_tokens=0), reads=(CaptureSpec((1,)),)
    )
    with counting(loaded) as counts:
        list(engine.run([request]))
    assert counts == {name: [len(request.prompt)] for name in ("block 0", "block 1")}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_lm_head_reads_contiguous_rows_or_torch_would_copy_its_weight(
    architecture: str,
) -> None:
    loaded = tiny(architecture)
    engine = TransformersEngine(loaded)
    strides: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        strides.append((inputs[0].stride(), torch.empty(inputs[0].shape).stride()))

    handle = loaded.model.get_output_embeddings().register_forward_pre_hook(see)
    drawn(engine, [request_of(engine, text, str(n)) for n, text in enumerate(TEXTS)])
    handle.remove()
    assert strides
    assert all(found == contiguous for found, contiguous in strides)


def test_a_run_leaves_no_hook_and_no_changed_weight_behind() -> None:
    loaded = tiny()
    hooks = [len(module._forward_hooks) for module in loaded.model.modules()]
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    engine = TransformersEngine(loaded)
    drawn(engine, [replace(request_of(engine, TEXTS[0]), reads=READS)])
    assert [len(module._forward_hooks) for module in loaded.model.modules()] == hooks
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_run_that_is_abandoned_leaves_no_hook_behind() -> None:
    loaded = tiny()
    engine = TransformersEngine(loaded)
    before = state_hash(loaded)
    events = engine.run([replace(request_of(engine, TEXTS[0]), reads=READS)])
    next(events)
    del events
    gc.collect()
    assert state_hash(loaded) == before


def test_a_reply_ends_at_the_end_token() -> None:
    loaded = tiny()
    engine = TransformersEngine(loaded)
    request = request_of(engine, TEXTS[0])
    tokens = ids(drawn(engine, [request])["0"])
    engine._end_ids = frozenset({tokens[2]})
    assert ids(drawn(engine, [request])["0"]) == tokens[: tokens.index(tokens[2]) + 1]


def test_a_template_without_a_system_role_takes_a_safety_prompt_before_the_first_user_turn() -> (
    None
):
    engine = TransformersEngine(tiny("llama", template=NO_SYSTEM))
    prompt = engine.render(Chat.from_text("hello", system="be kind"))
    kinds = [span.kind for span in prompt.spans]
    assert kinds == ["system", "user", "generation_prompt"]
