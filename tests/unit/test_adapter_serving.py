"""What the transformers engine makes of adapters, against PEFT and plain loops without a cache."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from demur.core.adapters import LoraFolder
from demur.core.errors import CapabilityError
from demur.core.interventions import AddVectors, Intervention, SwapHead, UseAdapter
from demur.core.protocols import Done, Event, Request, Switched, TokenOut
from demur.core.reads import Checkpoint
from demur.core.results import PASS
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.engines.transformers.passes import UNCHANGED, Changes, Passes
from demur.guard import Guard
from demur.guard.responding import load_responder
from demur.guard.routes import FlaggedTo
from demur.modeling.adapters import Adapters, Scaled, adapting
from demur.modeling.load import LoadedModel
from demur.responders.adapter import Adapter
from demur.responders.fixed_reply import FixedReply
from tests.adapters import in_peft, lora
from tests.guards import judge, marker_detector
from tests.interventions import TEXT, next_logits, plain_greedy, prompt_of, state_hash, stored
from tests.tiny import CONFIGS, tiny

NUM_TOKENS = 10
SAFE, UNSAFE = "Tell me about number 52, please.", "Tell me about number 53 MARKER, please."


def request(
    prompt: Prompt,
    intervention: Intervention | None,
    *,
    id: str = "0",
    checkpoints: Sequence[int] = (),
) -> Request:
    return Request(
        id,
        prompt,
        Sampling(max_tokens=NUM_TOKENS),
        decide=lambda _: intervention,
        checkpoints=tuple(map(Checkpoint, checkpoints)),
    )


def drawn(model: LoadedModel, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    events: list[Event] = list(TransformersEngine(model).run(requests))
    assert [e.error for e in events if isinstance(e, Done) and e.error] == []
    tokens = [e for e in events if isinstance(e, TokenOut)]
    return {of.id: [e for e in tokens if e.id == of.id] for of in requests}


def ids(tokens: Sequence[TokenOut]) -> list[int]:
    return [token.token_id for token in tokens]


@pytest.mark.parametrize("scale", [1.0, -0.5, 2.0])
def test_a_reply_under_an_adapter_is_that_of_peft(
    model: LoadedModel, scale: float, tmp_path: Path
) -> None:
    adapter, prompt = lora(tmp_path, model), prompt_of(model)
    theirs = in_peft(model, adapter, scale=scale)
    found = drawn(model, [request(prompt, UseAdapter(adapter.ref, scale))])["0"]
    assert ids(found) == plain_greedy(theirs, prompt, NUM_TOKENS)
    assert ids(found) != plain_greedy(model, prompt, NUM_TOKENS)
    every = [*prompt.token_ids, *ids(found)]
    for number, token in enumerate(found):
        logprobs = torch.log_softmax(next_logits(theirs, every[: len(prompt) + number]), -1)
        assert token.logprob == pytest.approx(float(logprobs[token.token_id]), abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.up_proj": 5, "o_proj": 1}},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    ],
)
def test_logits_under_settings_of_peft_are_those_of_peft(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny()
    adapter, ids = lora(tmp_path, model, **settings), prompt_of(model).token_ids
    under = Changes(adapter=Scaled(Adapters(model).get(adapter.ref), 1.0))
    expected = next_logits(in_peft(model, adapter), ids)
    torch.testing.assert_close(
        Passes(model).prefill(ids, changes=under).logits, expected, rtol=0, atol=1e-5
    )
    assert not torch.allclose(expected, next_logits(model, ids), atol=1e-2)


def test_a_scale_of_nothing_is_the_model_itself(model: LoadedModel, tmp_path: Path) -> None:
    off, prompt = UseAdapter(lora(tmp_path, model).ref, 0.0), prompt_of(model)
    assert drawn(model, [request(prompt, off)]) == drawn(model, [request(prompt, None)])


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Intervention | None]:
    own = tiny().model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    everywhere = lora(tmp_path / "everywhere", tiny()).ref
    upper = lora(tmp_path / "upper", tiny(), layers=[2, 3], rank=2, seed=1).ref
    vectors = stored(tmp_path, "vectors", 9 * torch.randn(1, 32, generator=generator))
    return {
        "0": None,
        "1": UseAdapter(everywhere),
        "2": UseAdapter(upper, 2.0),
        "3": None,
        "4": UseAdapter(everywhere, 0.5),
        "5": SwapHead(stored(tmp_path, "head", own + torch.randn(own.shape, generator=generator))),
        "6": AddVectors((1,), vectors),
        "7": UseAdapter(everywhere),
    }


def test_rows_of_a_mixed_batch_are_as_alone(many: dict[str, Intervention | None]) -> None:
    model = tiny()
    requests = [
        request(prompt_of(model, f"{TEXT} {'And then? ' * int(id)}"), of, id=id, checkpoints=[2])
        for id, of in many.items()
    ]
    together = drawn(model, requests)
    for of in requests:
        alone = drawn(model, [of])[of.id]
        assert ids(together[of.id]) == ids(alone)
        np.testing.assert_allclose(
            [token.logprob for token in together[of.id]],
            [token.logprob for token in alone],
            rtol=0,
            atol=1e-4,
        )


@pytest.mark.parametrize("architecture", sorted(set(CONFIGS) - {"mixtral"}))
def test_rows_without_an_adapter_are_bit_for_bit_those_of_a_batch_without_any(
    architecture: str, tmp_path: Path
) -> None:
    """Experts read the rows that come to them together, so there any other row changes rounding."""
    model = tiny(architecture)
    passes, adapters = Passes(model), Adapters(model)
    first = Scaled(adapters.get(lora(tmp_path / "1", model).ref), 1.0)
    second = Scaled(adapters.get(lora(tmp_path / "2", model, layers=[3], seed=2).ref), -2.0)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16], [17, 18, 19]])
    plain = passes.step({"input_ids": tokens}, [UNCHANGED] * 5, {})
    changes = [UNCHANGED, Changes(adapter=first), UNCHANGED, Changes(adapter=second), UNCHANGED]
    mixed = passes.step({"input_ids": tokens}, changes, {})
    for row in range(5):
        assert torch.equal(mixed[row], plain[row]) == (row % 2 == 0)


def test_nothing_is_left_behind(many: dict[str, Intervention | None], tmp_path: Path) -> None:
    model = tiny()
    before, prompt = state_hash(model), prompt_of(model)
    gone = lora(tmp_path / "gone", model).ref
    lora(tmp_path / "gone", model, seed=3)
    wrong = lora(tmp_path / "wrong", tiny("gpt2")).ref
    failing = {"gone": UseAdapter(gone), "wrong": UseAdapter(wrong)}
    requests = [request(prompt, of, id=id, checkpoints=[2]) for id, of in (many | failing).items()]
    events = list(TransformersEngine(model).run(requests))
    assert {e.id for e in events if isinstance(e, Done) and e.error} == set(failing)
    assert state_hash(model) == before


@pytest.mark.parametrize("when", ["in the prefill", "while decoding"])
def test_nothing_is_left_behind_by_a_pass_that_fails(when: str, tmp_path: Path) -> None:
    model = tiny()
    before, prompt = state_hash(model), prompt_of(model)
    calls: list[int] = []

    def fail(_module: nn.Module, _inputs: object, _output: object) -> None:
        calls.append(1)
        if len(calls) == (2 if when == "in the prefill" else 4):
            raise RuntimeError("broken")

    of = request(prompt, UseAdapter(lora(tmp_path, model, layers=[2, 3]).ref))
    with model.parts.blocks[2].register_forward_hook(fail):
        events = list(TransformersEngine(model).run([of]))
    assert isinstance(events[-1], Done)
    assert events[-1].error == "RuntimeError: broken"
    assert state_hash(model) == before


def test_a_map_that_is_never_called_is_an_error(tmp_path: Path) -> None:
    adapter = Scaled(Adapters(tiny()).get(lora(tmp_path, tiny()).ref), 1.0)
    with (
        pytest.raises(CapabilityError, match="28 of 28 adapted linear maps were not called"),
        adapting({0: adapter}, num_rows=1),
    ):
        pass


def test_low_rank_maps_are_computed_in_float32_beside_a_model_in_bfloat16(tmp_path: Path) -> None:
    adapter = lora(tmp_path, tiny())
    low = next(iter(Adapters(tiny()).get(adapter.ref).maps.values()))
    inputs = torch.randn(1, 3, low.a.shape[1], generator=torch.Generator().manual_seed(0))
    found = low.of(inputs.bfloat16(), torch.ones(1))
    assert found.dtype == torch.float32
    expected = low.scaling * inputs.bfloat16().double() @ low.a.double().T @ low.b.double().T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# Going on from a block


class Counting:
    """Counts the tokens that go through each block."""

    def __init__(self, model: LoadedModel) -> None:
        self.calls: Counter[int] = Counter()
        self._handles = [
            block.register_forward_hook(
                lambda _module, _inputs, _output, number=number: self.calls.update([number])
            )
            for number, block in enumerate(model.parts.blocks)
        ]

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()


def calls_of(model: LoadedModel, of: Request) -> list[int]:
    """Return how often each block is run for a request of one token."""
    engine = TransformersEngine(model)
    list(engine.run([replace(of, id="warm")]))  # an engine tries once whether it can resume
    with Counting(model) as counting:
        list(engine.run([replace(of, sampling=Sampling(max_tokens=1))]))
    return [counting.calls[number] for number in range(len(model.parts.blocks))]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_blocks_below_the_first_adapted_one_run_once(
    model: LoadedModel, layer: int, tmp_path: Path
) -> None:
    adapter = UseAdapter(lora(tmp_path, model, layers=range(layer, 4)).ref)
    prompt = prompt_of(model)
    kept = request(prompt, adapter, checkpoints=[layer])
    assert calls_of(model, kept) == [1] * layer + [2] * (4 - layer)
    assert calls_of(model, request(prompt, adapter)) == [2] * 4
    assert calls_of(model, request(prompt, None, checkpoints=[layer])) == [1] * 4


@pytest.mark.parametrize("layer", [1, 3])
def test_going_on_from_a_block_is_reading_all_again(
    model: LoadedModel, layer: int, tmp_path: Path
) -> None:
    adapter, prompt = lora(tmp_path, model, layers=range(layer, 4)), prompt_of(model)
    passes = Passes(model)
    under = Changes(adapter=Scaled(Adapters(model).get(adapter.ref), 1.0))
    plain = passes.prefill(prompt.token_ids, checkpoints=[Checkpoint(layer)])
    again = passes.resume(plain, layer=layer, changes=under)
    whole = passes.prefill(prompt.token_ids, changes=under)
    torch.testing.assert_close(again.logits, whole.logits, rtol=0, atol=1e-5)
    for number, of in enumerate(again.cache.layers):
        torch.testing.assert_close(of.keys, whole.cache.layers[number].keys, rtol=0, atol=1e-5)
        torch.testing.assert_close(of.values, whole.cache.layers[number].values, rtol=0, atol=1e-5)
        is_kept = of.keys.data_ptr() == plain.cache.layers[number].keys.data_ptr()
        assert is_kept == (number < layer)
    use = UseAdapter(adapter.ref)
    found = drawn(model, [request(prompt, use, checkpoints=[layer])])["0"]
    assert ids(found) == plain_greedy(in_peft(model, adapter), prompt, NUM_TOKENS)


def test_a_checkpoint_changes_nothing_of_a_prefill(model: LoadedModel) -> None:
    ids, passes = prompt_of(model).token_ids, Passes(model)
    plain, kept = passes.prefill(ids), passes.prefill(ids, checkpoints=[Checkpoint(2)])
    assert torch.equal(plain.logits, kept.logits)
    assert not plain.trail.inputs
    assert not plain.trail.calls
    with torch.inference_mode():
        output = model.model(torch.tensor([ids]), output_hidden_states=True)
    torch.testing.assert_close(kept.trail.inputs[2], output.hidden_states[2])


def test_a_model_that_cannot_be_resumed_reads_all_again(tmp_path: Path) -> None:
    model = tiny()
    adapter, prompt = lora(tmp_path, model, layers=[2, 3]), prompt_of(model)

    def scaled(_module: object, _inputs: object, output: Any) -> Any:
        output.logits = output.logits * 7
        return output

    of = request(prompt, UseAdapter(adapter.ref), checkpoints=[2])
    with model.model.register_forward_hook(scaled):
        assert not Passes(model).can_resume(2)
        assert calls_of(model, of) == [2] * 4
        found = drawn(model, [of])["0"]
    assert ids(found) == plain_greedy(in_peft(model, adapter), prompt, NUM_TOKENS)


# Behind a guard


def guard_of(engine: TransformersEngine, adapter: LoraFolder, *, scale: float = 1.0) -> Guard:
    return Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo("adapter"),
        responders={
            "adapter": load_responder(f"adapter:{adapter.folder}@{scale}", engine.model_id),
            "fixed_reply": FixedReply(),
        },
    )


def test_flagged_prompts_are_answered_under_the_adapter_and_streamed(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny())
    adapter = lora(tmp_path, tiny(), layers=[2, 3])
    guard = guard_of(engine, adapter)
    sampling = Sampling(max_tokens=NUM_TOKENS)
    unsafe = engine.render(Chat.from_text(UNSAFE))
    expected = plain_greedy(in_peft(tiny(), adapter), unsafe, NUM_TOKENS)
    stream = guard.stream(UNSAFE, sampling)
    tokens = list(stream)
    assert [token.token_id for token in tokens] == expected
    assert {token.route for token in tokens} == {"adapter"}
    replies = list(guard.replies([UNSAFE, SAFE, UNSAFE], sampling))
    assert [reply.route for reply in replies] == ["adapter", PASS, "adapter"]
    assert list(replies[0].token_ids) == list(replies[2].token_ids) == expected
    safe = engine.render(Chat.from_text(SAFE))
    assert list(replies[1].token_ids) == plain_greedy(tiny(), safe, NUM_TOKENS)


def test_a_guard_asks_for_checkpoints_where_its_route_may_want_them(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny())
    upper = lora(tmp_path / "upper", tiny(), layers=[2, 3])
    guards: list[tuple[Guard, tuple[Checkpoint, ...]]] = [
        (guard_of(engine, upper), (Checkpoint(2),)),
        (guard_of(engine, upper, scale=0.0), ()),
        (guard_of(engine, lora(tmp_path / "all", tiny())), ()),
        (
            Guard(
                engine,
                [judge("calm", 0.0)],
                route=FlaggedTo("fixed_reply"),
                responders={"fixed_reply": FixedReply(), "adapter": Adapter(upper)},
            ),
            (),
        ),
        (
            Guard(
                engine,
                [judge("calm", 0.0)],
                route=FlaggedTo("adapter"),
                responders={"adapter": Adapter(upper)},
                observes=True,
            ),
            (),
        ),
    ]
    for guard, expected in guards:
        of = guard.open(TEXT).request
        assert of is not None
        assert of.checkpoints == expected


def test_a_prompt_under_an_adapter_says_that_it_switched(tmp_path: Path) -> None:
    use = UseAdapter(lora(tmp_path, tiny()).ref)
    events = list(TransformersEngine(tiny()).run([request(prompt_of(tiny()), use)]))
    assert events[1] == Switched("0", use)
