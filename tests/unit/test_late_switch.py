"""Replies that go on under an adapter from the tokens that they have, against loops of PEFT."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demur.core.adapters import WEIGHTS, LoraFolder
from demur.core.errors import ConfigError
from demur.core.interventions import (
    AddVectors,
    EndReply,
    Intervention,
    MidReply,
    PrependEmbeddings,
    PrependText,
    ReplyWith,
    RerankTokens,
    SwapHead,
    UseAdapter,
)
from demur.core.protocols import Done, Event, Monitor, Request, Switched, TokenOut, Watched
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.results import PASS, SWITCHED, Verdict
from demur.core.types import Chat, Prompt, Sampling
from demur.detectors.linear import Linear
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.monitor import ReplyMonitor
from demur.guard.routes import FlaggedTo
from demur.modeling.load import LoadedModel
from demur.responders.fixed_reply import FixedReply
from tests.adapters import in_peft, lora
from tests.guards import judge, streamed
from tests.interventions import TEXT, next_logits, plain_greedy, prompt_of, state_hash, stored
from tests.tiny import tiny

NUM_TOKENS = 10
OF_REPLY = CaptureSpec((1,), positions="reply")
Cache = Literal["keep", "recompute"]


@pytest.fixture(params=["llama", "gemma3", "gpt2", "qwen2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny(request.param)


@pytest.fixture
def adapter(model: LoadedModel, tmp_path: Path) -> LoraFolder:
    return lora(tmp_path / "adapter", model)


class Switching:
    """A monitor's function that intervenes after some tokens."""

    def __init__(self, plan: Mapping[int, MidReply]) -> None:
        self.num_seen = 0
        self._plan = plan

    def __call__(self, states: Array) -> MidReply | None:
        self.num_seen += 1
        return self._plan.get(self.num_seen)


def request(
    prompt: Prompt,
    plan: Mapping[int, MidReply],
    *,
    id: str = "0",
    first: Intervention | None = None,
    num_tokens: int = NUM_TOKENS,
) -> Request:
    monitor = Monitor(OF_REPLY, Switching(plan))
    sampling = Sampling(max_tokens=num_tokens)
    return Request(id, prompt, sampling, decide=lambda _: first, monitor=monitor)


def events_of(model: LoadedModel, *requests: Request) -> list[Event]:
    return list(TransformersEngine(model).run(requests))


def tokens_of(events: Sequence[Event], id: str = "0") -> list[int]:
    assert [e.error for e in events if isinstance(e, Done) and e.id == id and e.error] == []
    return [e.token_id for e in events if isinstance(e, TokenOut) and e.id == id]


@contextmanager
def adapted_from(
    model: LoadedModel, of: LoraFolder, first: int, scale: float = 1.0
) -> Iterator[None]:
    """Add what an adapter adds from a position on, while whole sequences are read at once."""
    tensors = load_file(Path(of.folder) / WEIGHTS)
    maps = {}
    for low in of.maps:
        a, b = (tensors[key] for key in low.keys)
        maps[model.model.get_submodule(low.module)] = low.scaling * scale * (b @ a)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = inputs[0][:, first:] @ maps[module].T
        return torch.cat([output[:, :first], output[:, first:] + added], 1)

    handles = [module.register_forward_hook(add) for module in maps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def go_on(model: LoadedModel, prompt: Prompt, begun: Sequence[int]) -> list[int]:
    """Decode greedily from a reply's first tokens, reading everything anew in each step."""
    longer = replace(prompt, token_ids=(*prompt.token_ids, *begun))
    return [*begun, *plain_greedy(model, longer, NUM_TOKENS - len(begun))]


@pytest.mark.parametrize("after", [1, 4])
def test_a_recomputed_reply_goes_on_as_if_the_adapter_had_read_all(
    model: LoadedModel, adapter: LoraFolder, after: int
) -> None:
    prompt = prompt_of(model)
    plain = plain_greedy(model, prompt, NUM_TOKENS)
    use = UseAdapter(adapter.ref, cache="recompute")
    found = tokens_of(events_of(model, request(prompt, {after: use})))
    assert found == go_on(in_peft(model, adapter), prompt, plain[:after])
    assert found != plain


@pytest.mark.parametrize("after", [1, 4])
def test_a_kept_reply_goes_on_from_its_newest_token_under_the_adapter(
    model: LoadedModel, adapter: LoraFolder, after: int
) -> None:
    prompt = prompt_of(model)
    plain = plain_greedy(model, prompt, NUM_TOKENS)
    use = UseAdapter(adapter.ref, 0.7, cache="keep")
    found = tokens_of(events_of(model, request(prompt, {after: use})))
    with adapted_from(model, adapter, len(prompt) + after - 1, 0.7):
        assert found == go_on(model, prompt, plain[:after])
    assert found != plain


def test_what_is_kept_differs_from_what_is_recomputed(tmp_path: Path) -> None:
    model = tiny()
    use, prompt = UseAdapter(lora(tmp_path, model).ref), prompt_of(model)
    kept, anew = (
        [
            e.logprob
            for e in events_of(model, request(prompt, {3: replace(use, cache=cache)}))
            if isinstance(e, TokenOut)
        ]
        for cache in get_args(Cache)
    )
    assert kept[:3] == anew[:3]
    assert kept[3] != pytest.approx(anew[3], abs=1e-3)


@pytest.mark.parametrize("cache", ["keep", "recompute"])
def test_rows_that_switch_and_their_neighbours_are_as_alone(cache: Cache, tmp_path: Path) -> None:
    model = tiny()
    use = UseAdapter(lora(tmp_path / "all", model).ref, cache=cache)
    upper = UseAdapter(lora(tmp_path / "upper", model, layers=[3], seed=1).ref, 2.0, cache=cache)
    own = model.model.get_output_embeddings().weight
    head = SwapHead(stored(tmp_path, "head", own + torch.randn(own.shape)))
    plans: list[tuple[Mapping[int, MidReply], Intervention | None]] = [
        ({}, None),
        ({2: use}, None),
        ({2: upper, 5: use}, None),
        ({}, use),
        ({3: upper}, use),
        ({4: replace(use, scale=0.0)}, use),
        ({3: use}, head),
    ]
    requests = [
        request(prompt_of(model, f"{TEXT} {'And? ' * number}"), plan, id=str(number), first=first)
        for number, (plan, first) in enumerate(plans)
    ]
    before = state_hash(model)
    together = events_of(model, *requests)
    assert state_hash(model) == before
    for of, (plan, first) in zip(requests, plans, strict=True):
        alone = request(of.prompt, plan, id=of.id, first=first)
        assert tokens_of(together, of.id) == tokens_of(events_of(model, alone), of.id)
    plain = plain_greedy(model, requests[0].prompt, NUM_TOKENS)
    assert tokens_of(together, "0") == plain


def test_the_events_say_where_it_switched(tmp_path: Path) -> None:
    model = tiny()
    use = UseAdapter(lora(tmp_path, model).ref)
    events = events_of(model, request(prompt_of(model), {3: use}, num_tokens=5))
    kinds = [type(event) for event in events[1:]]
    assert kinds == [TokenOut, Watched] * 3 + [Switched] + [TokenOut, Watched] * 2 + [Done]
    assert events[7] == Switched("0", use)
    positions = [event.position for event in events if isinstance(event, TokenOut)]
    assert positions == [*range(positions[0], positions[0] + 5)]


def test_a_switch_after_the_last_token_changes_nothing(tmp_path: Path) -> None:
    model, prompt = tiny(), prompt_of(tiny())
    use = UseAdapter(lora(tmp_path, model).ref)
    events = events_of(model, request(prompt, {4: use}, num_tokens=4))
    assert tokens_of(events) == plain_greedy(model, prompt, 4)
    assert events[-2:] == [Switched("0", use), Done("0", "length")]


def test_a_scale_of_nothing_goes_on_as_it_was(tmp_path: Path) -> None:
    model, prompt = tiny(), prompt_of(tiny())
    off = UseAdapter(lora(tmp_path, model).ref, 0.0)
    events = [e for e in events_of(model, request(prompt, {2: off})) if isinstance(e, TokenOut)]
    plain = [e for e in events_of(model, request(prompt, {})) if isinstance(e, TokenOut)]
    assert events == plain


def test_a_reply_under_a_safety_prompt_is_read_again_with_it(tmp_path: Path) -> None:
    model, chat = tiny(), Chat.from_text(TEXT)
    adapter = lora(tmp_path, model)
    first, use = PrependText("Be kind."), UseAdapter(adapter.ref, cache="recompute")
    longer = TransformersEngine(model).render(chat.with_safety_prompt("Be kind."))
    begun = plain_greedy(model, longer, 3)
    found = tokens_of(events_of(model, request(prompt_of(model), {3: use}, first=first)))
    assert found == go_on(in_peft(model, adapter), longer, begun)


def test_what_cannot_go_on_under_an_adapter_ends_as_an_error(tmp_path: Path) -> None:
    model = tiny()
    recompute = UseAdapter(lora(tmp_path / "a", model).ref, cache="recompute")
    vectors = AddVectors((1,), stored(tmp_path, "vectors", torch.ones(1, 32)))
    rerank = RerankTokens(2, CaptureSpec((2,)), stored(tmp_path, "weights", torch.ones(32)))
    for first, problem in ((vectors, "cache='keep'"), (rerank, "reranked cannot go on")):
        events = events_of(model, request(prompt_of(model), {2: recompute}, first=first))
        done = events[-1]
        assert isinstance(done, Done)
        assert done.error is not None
        assert problem in done.error
        assert len([e for e in events if isinstance(e, TokenOut)]) == 2
    kept = replace(recompute, cache="keep")
    tokens_of(events_of(model, request(prompt_of(model), {2: kept}, first=vectors)))


def test_the_pretend_model_runs_no_adapter(tmp_path: Path) -> None:
    engine, use = FakeEngine(), UseAdapter(lora(tmp_path, tiny()).ref)
    prompt = engine.render(Chat.from_text(TEXT))
    *_, done = engine.run([request(prompt, {2: use})])
    assert isinstance(done, Done)
    assert "CapabilityError" in str(done.error)


# Behind a guard


def flagging(bias: float) -> CalibratedDetector:
    """Return a detector of replies whose score is always the same; it flags at 0.5."""
    weights: dict[str, Array] = {
        "weights.0": np.zeros((1, 32), np.float32),
        "bias": np.full(1, bias),
    }
    detector = Linear((CaptureSpec((1,), "last"),), watches="reply").load_state(weights)
    return CalibratedDetector("watcher", detector, 0.5, 1.0, 0.0, "test")


def guard_of(monitor: ReplyMonitor, *, observes: bool = False) -> Guard:
    return Guard(
        TransformersEngine(tiny()),
        [judge("calm", 0.0)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
        monitor=monitor,
        observes=observes,
    )


@pytest.mark.parametrize("hold_tokens", [0, 1, 3])
@pytest.mark.parametrize("cache", ["keep", "recompute"])
def test_a_flagged_reply_goes_on_under_the_adapter(
    hold_tokens: int, cache: Cache, tmp_path: Path
) -> None:
    model, adapter = tiny(), lora(tmp_path, tiny())
    use = UseAdapter(adapter.ref, cache=cache)
    monitor = ReplyMonitor(flagging(1.0), use, hold_tokens=hold_tokens)
    tokens, reply = streamed(guard_of(monitor), TEXT, Sampling(max_tokens=NUM_TOKENS))
    expected = tokens_of(events_of(model, request(prompt_of(model), {1: use})))
    assert list(reply.token_ids) == [token.token_id for token in tokens] == expected
    assert (reply.route, reply.finish_reason) == (SWITCHED, "length")
    assert [token.route for token in tokens] == [PASS, *[SWITCHED] * (NUM_TOKENS - 1)]
    assert reply.reply_verdict is not None
    assert reply.reply_verdict.flagged
    assert reply.num_scanned == NUM_TOKENS


def test_a_quiet_reply_and_an_observed_one_are_untouched(tmp_path: Path) -> None:
    model, use = tiny(), UseAdapter(lora(tmp_path, tiny()).ref)
    sampling = Sampling(max_tokens=NUM_TOKENS)
    plain = plain_greedy(model, prompt_of(model), NUM_TOKENS)
    quiet = guard_of(ReplyMonitor(flagging(0.0), use)).reply(TEXT, sampling)
    assert (list(quiet.token_ids), quiet.route) == (plain, PASS)
    seen = guard_of(ReplyMonitor(flagging(1.0), use), observes=True).reply(TEXT, sampling)
    assert (list(seen.token_ids), seen.route, seen.would_route) == (plain, PASS, SWITCHED)


def test_a_switch_that_fails_ends_the_reply_without_showing_what_was_held(tmp_path: Path) -> None:
    use = UseAdapter(lora(tmp_path, tiny()).ref)
    guard = guard_of(ReplyMonitor(flagging(1.0), use))
    engine: Any = guard.engine
    engine._starter._adapters._found.clear()
    lora(tmp_path, tiny(), seed=1)
    tokens, reply = streamed(guard, TEXT, Sampling(max_tokens=NUM_TOKENS))
    assert tokens == []
    assert (reply.route, reply.text) == ("error", "")
    assert "was replaced" in str(reply.error)


class Begins:
    """A responder whose replies begin under one intervention."""

    def __init__(self, need: type) -> None:
        self.needs = frozenset({need})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> ReplyWith:
        return ReplyWith("Never asked.")


@pytest.mark.parametrize("need", [AddVectors, PrependEmbeddings])
def test_replies_that_cannot_be_read_again_are_seen_when_the_guard_is_built(
    need: type, tmp_path: Path
) -> None:
    use = UseAdapter(lora(tmp_path, tiny()).ref, cache="recompute")

    def build(intervention: MidReply) -> Guard:
        return Guard(
            TransformersEngine(tiny()),
            [judge("calm", 0.0)],
            route=FlaggedTo("mine"),
            responders={"mine": Begins(need)},
            monitor=ReplyMonitor(flagging(1.0), intervention),
        )

    with pytest.raises(ConfigError, match=f"'mine' begin under {need.__name__}.* keep"):
        build(use)
    for possible in (replace(use, cache="keep"), EndReply()):
        assert build(possible).monitor is not None


def test_next_logits_of_the_oracle_are_those_of_peft_from_the_first_position(
    model: LoadedModel, adapter: LoraFolder
) -> None:
    ids = prompt_of(model).token_ids
    with adapted_from(model, adapter, 0):
        found = next_logits(model, ids)
    torch.testing.assert_close(found, next_logits(in_peft(model, adapter), ids), rtol=0, atol=1e-4)
