"""What every engine promises, whatever model it runs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from demur.core.errors import DataError
from demur.core.interventions import Intervention, PrependText, ReplyWith
from demur.core.protocols import Done, Engine, Event, Request, Scored, Switched, TokenOut
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec, Read, Texts
from demur.core.types import Chat, Sampling
from tests.engine_runs import TEXTS, MakeEngine, events_of, one, requests_for, text_of, token_ids

READS: tuple[Read, ...] = (
    CaptureSpec((0, -1)),
    CaptureSpec((1,), positions="user", pool="mean", normalise="rms"),
    CaptureSpec((1,), positions="users", pool="max"),
    CaptureSpec((0, 1), positions="all"),
    CaptureSpec((0,), positions=(0, -1)),
    CaptureSpec((-1,), site="final_norm"),
    Texts(),
)


def possible(engine: Engine) -> tuple[Read, ...]:
    """Return those of `READS` that an engine can do: of captures, one may be built for a few."""
    built_for = getattr(engine, "reads", READS)
    return tuple(r for r in READS if r in built_for or not isinstance(r, CaptureSpec))


def test_events_of_a_request_are_scored_then_tokens_then_done_once(engine: Engine) -> None:
    for events in events_of(engine, requests_for(engine, Sampling(max_tokens=4))).values():
        first, *tokens, last = events
        assert isinstance(first, Scored)
        assert first.prefill_s >= 0
        assert first.guard_s >= 0
        assert tokens
        assert all(isinstance(event, TokenOut) for event in tokens)
        assert isinstance(last, Done)


def test_rows_decode_side_by_side(engine: Engine) -> None:
    events = list(engine.run(requests_for(engine, Sampling(max_tokens=6))))
    first_done = next(n for n, event in enumerate(events) if isinstance(event, Done))
    assert len({event.id for event in events[:first_done]}) > 1


def test_a_scored_request_draws_nothing(engine: Engine) -> None:
    seen: list[Readings] = []

    def decide(readings: Readings) -> Intervention:
        seen.append(readings)
        return ReplyWith("no")

    request = replace(one(engine, Sampling(max_tokens=0)), reads=READS[:1], decide=decide)
    scored, done = events_of(engine, [request])["0"]
    assert isinstance(scored, Scored)
    assert done == Done("0", "scored")
    assert len(seen) == 1


@pytest.mark.parametrize("read", READS, ids=str)
def test_a_read_gives_the_values_that_readings_describe(engine: Engine, read: Read) -> None:
    if read not in possible(engine):
        pytest.skip("the engine does not claim to do it")
    seen: list[Readings] = []
    request = replace(one(engine, Sampling(max_tokens=0)), reads=(read,), decide=seen.append)
    events_of(engine, [request])
    (readings,) = seen
    assert set(readings.values) == {read}
    assert len(readings) == 1
    (value,) = readings.values[read]
    if isinstance(read, Texts):
        assert value == TEXTS[0]
        return
    assert isinstance(read, CaptureSpec)
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.float32
    num_positions = {"all": len(request.prompt), (0, -1): 2}.get(read.positions)
    positions = () if read.is_pooled else (num_positions,)
    assert value.shape[:-1] == (len(read.layers), *positions)
    assert np.isfinite(value).all()


def test_what_is_read_does_not_depend_on_other_reads_or_on_decoding(engine: Engine) -> None:
    seen: list[Readings] = []
    for reads, max_tokens in ((READS[:1], 2), (READS[:1], 0), (possible(engine), 2)):
        sampling = Sampling(max_tokens=max_tokens)
        events_of(engine, [replace(one(engine, sampling), reads=reads, decide=seen.append)])
    states = [readings.values[READS[0]][0] for readings in seen]
    for other in states[1:]:
        np.testing.assert_allclose(np.asarray(other), np.asarray(states[0]), rtol=1e-5, atol=1e-6)


def test_a_request_without_logprobs_draws_the_same_tokens(engine: Engine) -> None:
    request = Request("0", engine.render(Chat.from_text(TEXTS[0])), Sampling(max_tokens=6))
    found = [
        [event for event in engine.run([of]) if isinstance(event, TokenOut)]
        for of in (request, replace(request, wants_logprobs=False))
    ]
    ids = [[token.token_id for token in tokens] for tokens in found]
    assert ids[0]
    assert ids[0] == ids[1]
    assert all(np.isfinite(token.logprob) for token in found[0])
    pairs = zip(*found, strict=True)
    assert all(np.isnan(without.logprob) or without == plain for plain, without in pairs)


def test_a_request_that_passes_equals_one_without_reads(engine: Engine) -> None:
    plain = one(engine, Sampling(max_tokens=12))
    guarded = replace(plain, reads=possible(engine))
    assert token_ids(events_of(engine, [guarded])["0"]) == token_ids(
        events_of(engine, [plain])["0"]
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_draws_the_same_tokens(make_engine: MakeEngine, temperature: float) -> None:
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=5)
    first, second = make_engine(2), make_engine(2)
    drawn = events_of(first, requests_for(first, sampling))
    again = events_of(second, requests_for(second, sampling))
    assert {k: token_ids(v) for k, v in drawn.items()} == {
        k: token_ids(v) for k, v in again.items()
    }


def test_another_seed_or_id_draws_other_tokens(engine: Engine) -> None:
    request = one(engine, Sampling(max_tokens=12, temperature=1.0, seed=5))
    others = [
        replace(request, id="other"),
        replace(request, id="0", sampling=replace(request.sampling, seed=6)),
    ]
    drawn = [token_ids(events_of(engine, [r])[r.id]) for r in (request, *others)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_join_and_leave_without_changing_their_neighbours(
    make_engine: MakeEngine, temperature: float
) -> None:
    engine = make_engine(2)
    lengths = (9, 2, 6, 1, 4)
    requests = [
        Request(
            str(number),
            engine.render(Chat.from_text(TEXTS[number % 3] * (1 + number))),
            Sampling(max_tokens=length, temperature=temperature),
            decide=lambda readings, n=number: PrependText("Be kind.") if n == 2 else None,  # type: ignore[misc]
        )
        for number, length in enumerate(lengths)
    ]
    together = events_of(engine, requests)
    for request in requests:
        alone = events_of(engine, [request])[request.id]
        assert token_ids(together[request.id]) == token_ids(alone)


def test_requests_are_taken_lazily(make_engine: MakeEngine) -> None:
    engine = make_engine(2)
    pulled: list[str] = []

    def requests() -> Iterator[Request]:
        for request in requests_for(engine, Sampling(max_tokens=3), TEXTS * 3):
            pulled.append(request.id)
            yield request

    events = engine.run(requests())
    assert pulled == []
    next(event for event in events if isinstance(event, Done))
    assert len(pulled) <= 3
    assert sum(isinstance(event, Done) for event in events) == 8


def test_decide_is_called_once_for_each_request(engine: Engine) -> None:
    calls: list[str] = []
    requests = [
        replace(request, decide=lambda readings, i=request.id: calls.append(i))  # type: ignore[misc]
        for request in requests_for(engine, Sampling(max_tokens=4))
    ]
    events_of(engine, requests)
    assert sorted(calls) == ["0", "1", "2"]


def test_a_decision_that_raises_ends_only_its_own_request(engine: Engine) -> None:
    def fail(readings: Readings) -> None:
        raise RuntimeError("no verdict")

    requests = requests_for(engine, Sampling(max_tokens=4))
    healthy = events_of(engine, requests)
    requests[1] = replace(requests[1], decide=fail)
    events = events_of(engine, requests)
    assert token_ids(events["1"]) == []
    done = events["1"][-1]
    assert isinstance(done, Done)
    assert done.reason == "error"
    assert done.error is not None
    assert "no verdict" in done.error
    assert [token_ids(events[i]) for i in "02"] == [token_ids(healthy[i]) for i in "02"]


def test_a_read_that_the_model_lacks_is_an_error_of_its_request(engine: Engine) -> None:
    requests = requests_for(engine, Sampling(max_tokens=2))
    requests[0] = replace(requests[0], reads=(CaptureSpec((1000,)),))
    events = events_of(engine, requests)
    assert [e.reason for e in events["0"] if isinstance(e, Done)] == ["error"]
    assert token_ids(events["1"])


def test_a_reply_of_fixed_text_is_emitted_as_its_tokens(engine: Engine) -> None:
    request = one(engine, Sampling(max_tokens=2), ReplyWith("I cannot help with that, sorry."))
    _, switched, *tokens, done = events_of(engine, [request])["0"]
    assert switched == Switched("0", ReplyWith("I cannot help with that, sorry."))
    assert text_of(tokens) == "I cannot help with that, sorry."
    assert done == Done("0", "replaced")


def test_a_prepended_text_is_answered_as_the_system_message_it_becomes(engine: Engine) -> None:
    sampling = Sampling(max_tokens=12)
    events = events_of(engine, [one(engine, sampling, PrependText("Be kind."))])["0"]
    assert isinstance(events[1], Switched)
    chat = Chat.from_text(TEXTS[0], system="Be kind.")
    expected = events_of(engine, [Request("0", engine.render(chat), sampling)])["0"]
    assert token_ids(events) == token_ids(expected)
    assert token_ids(events) != token_ids(events_of(engine, [one(engine, sampling)])["0"])


def test_positions_go_on_counting_after_the_prompt(engine: Engine) -> None:
    request = one(engine, Sampling(max_tokens=3))
    positions = [e.position for e in events_of(engine, [request])["0"] if isinstance(e, TokenOut)]
    start = len(request.prompt)
    assert positions == list(range(start, start + 3))


def test_a_reply_ends_at_its_longest_length(engine: Engine) -> None:
    events = events_of(engine, [one(engine, Sampling(max_tokens=2))])["0"]
    assert len(token_ids(events)) == 2
    assert events[-1] == Done("0", "length")


def test_a_reply_ends_before_a_stop_text(engine: Engine) -> None:
    whole = text_of(events_of(engine, [one(engine, Sampling(max_tokens=6))])["0"])
    stop = whole[2:4]
    events = events_of(engine, [one(engine, Sampling(max_tokens=6, stop=(stop,)))])["0"]
    assert text_of(events) == whole[: whole.find(stop)]
    assert events[-1] == Done("0", "stop")


def test_a_prompt_and_its_reply_stay_within_the_context(engine: Engine) -> None:
    events = events_of(engine, [one(engine, Sampling(max_tokens=100_000))])["0"]
    last = [event for event in events if isinstance(event, TokenOut)][-1]
    assert last.position < engine.max_tokens


def test_a_prompt_that_fills_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="tokens"):
        engine.render(Chat.from_text("word " * engine.max_tokens))


def test_a_chat_that_ends_in_an_assistant_turn_is_refused(engine: Engine) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(DataError, match="assistant"):
        engine.render(Chat.from_messages(turns))


def test_spans_hold_each_turn_and_end_with_the_generation_prompt(engine: Engine) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who are you?"},
    ]
    prompt = engine.render(Chat.from_messages(turns))
    assert [span.kind for span in prompt.spans] == [
        "user", "assistant", "user", "generation_prompt",
    ]  # fmt: skip
    assert all(span.start < span.stop for span in prompt.spans)
    assert prompt.spans[-1].stop == len(prompt)
    assert not prompt.has_forged_markers


def test_an_engine_names_its_model_and_what_it_can_do(make_engine: MakeEngine) -> None:
    engine = make_engine(1)
    assert not engine.model_id.differences(make_engine(4).model_id)
    assert {CaptureSpec, Texts, ReplyWith, PrependText} <= engine.capabilities


def test_requests_may_come_with_pauses(engine: Engine) -> None:
    first, second, third = requests_for(engine, Sampling(max_tokens=6))
    arriving = iter([first, None, None, second, None, third])
    events: dict[str, list[Event]] = {}
    for event in engine.run(arriving):
        events.setdefault(event.id, []).append(event)
    alone = events_of(engine, requests_for(engine, Sampling(max_tokens=6)))
    assert {key: token_ids(of) for key, of in events.items()} == {
        key: token_ids(of) for key, of in alone.items()
    }


def test_a_request_that_nobody_waits_for_leaves_and_the_others_go_on(engine: Engine) -> None:
    gone: set[str] = set()
    requests = [
        replace(request, is_abandoned=partial(gone.__contains__, request.id))
        for request in requests_for(engine, Sampling(max_tokens=8))
    ]
    alone = events_of(engine, requests_for(engine, Sampling(max_tokens=8)))
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    for event in engine.run(requests):
        events[event.id].append(event)
        if event.id == "1" and isinstance(event, TokenOut):
            gone.add("1")
    assert events["1"][-1] == Done("1", "abandoned")
    assert len(token_ids(events["1"])) < len(token_ids(alone["1"]))
    assert token_ids(events["0"]) == token_ids(alone["0"])
    assert token_ids(events["2"]) == token_ids(alone["2"])


def test_a_request_that_was_given_up_while_it_waited_is_never_read(engine: Engine) -> None:
    (request,) = requests_for(engine, Sampling(max_tokens=8), TEXTS[:1])
    events = list(engine.run([replace(request, is_abandoned=lambda: True)]))
    assert events == [Done("0", "abandoned")]
