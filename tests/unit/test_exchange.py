"""Replies: untouched where a prompt passes, the responder's where it does not, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from demur.core.errors import DataError, DemurError
from demur.core.results import ERROR, PASS, Reply
from demur.core.types import Chat, Sampling
from demur.engines.fake import FakeEngine
from demur.guard.exchange import ChatLike, plain_replies
from demur.responders.safety_prompt import SafetyPrompt
from tests.guards import REFUSAL, SAFE, UNSAFE, marker_guard, streamed

SHORT = Sampling(max_tokens=4)
DRAWN = Sampling(max_tokens=6, temperature=1.0, top_p=0.9, seed=3)
MIXED = [SAFE, UNSAFE, "Why?", "And the MARKER?", UNSAFE + " Again!", "Name five rivers, please."]


def plain(engine: FakeEngine, chats: Sequence[ChatLike], sampling: Sampling) -> list[Reply]:
    return list(plain_replies(engine, chats, sampling))


# What passes is untouched


@pytest.mark.parametrize("sampling", [SHORT, Sampling(), DRAWN], ids=str)
def test_a_prompt_that_passes_is_answered_token_for_token_as_without_guard(
    sampling: Sampling,
) -> None:
    engine = FakeEngine()
    reply = marker_guard(engine).reply(SAFE, sampling)
    (unguarded,) = plain(engine, [SAFE], sampling)
    assert reply.route == PASS
    assert (reply.text, reply.token_ids) == (unguarded.text, unguarded.token_ids)
    assert reply.finish_reason == unguarded.finish_reason


@pytest.mark.parametrize("sampling", [SHORT, DRAWN], ids=str)
def test_flagged_neighbours_do_not_change_what_passes(sampling: Sampling) -> None:
    engine = FakeEngine(max_batch=3)
    guarded = list(marker_guard(engine).replies(MIXED, sampling))
    unguarded = plain(engine, MIXED, sampling)
    passed = [number for number, reply in enumerate(guarded) if reply.route == PASS]
    assert passed == [0, 2, 5]
    for number in passed:
        assert guarded[number].token_ids == unguarded[number].token_ids


def test_a_prompt_that_passes_is_read_once() -> None:
    engine, unguarded = FakeEngine(), FakeEngine()
    guard = marker_guard(engine)
    prefills, tokens = engine.num_prefills, engine.num_prefill_tokens
    guard.reply(SAFE)
    plain(unguarded, [SAFE], Sampling())
    assert unguarded.num_prefills == 1
    assert engine.num_prefills - prefills == 1
    assert engine.num_prefill_tokens - tokens == unguarded.num_prefill_tokens


def test_a_plain_reply_has_no_verdicts() -> None:
    (reply,) = plain(FakeEngine(), [UNSAFE], SHORT)
    assert (reply.route, reply.verdicts) == (PASS, ())


def test_a_plain_reply_to_what_cannot_be_rendered_is_an_error() -> None:
    reply, other = plain(FakeEngine(), [" ", SAFE], SHORT)
    assert (reply.route, reply.text) == (ERROR, "")
    assert other.route == PASS


# What is flagged goes to the responder


def test_a_flagged_prompt_gets_the_fixed_reply() -> None:
    reply = marker_guard().reply(UNSAFE)
    assert (reply.route, reply.text, reply.finish_reason) == ("fixed_reply", REFUSAL, "replaced")


def test_a_fixed_reply_costs_no_second_prefill() -> None:
    engine = FakeEngine()
    guard = marker_guard(engine)
    before = engine.num_prefills
    guard.reply(UNSAFE)
    assert engine.num_prefills == before + 1


def test_a_flagged_prompt_is_answered_under_the_safety_prompt() -> None:
    engine = FakeEngine()
    reply = marker_guard(engine, responder="safety_prompt").reply(UNSAFE)
    chat = Chat.from_text(UNSAFE, system=SafetyPrompt().text)
    (expected,) = plain(engine, [chat], Sampling())
    assert reply.route == "safety_prompt"
    assert (reply.text, reply.token_ids) == (expected.text, expected.token_ids)


def test_a_flagged_prompt_that_is_only_scored_draws_nothing() -> None:
    reply = marker_guard().reply(UNSAFE, Sampling(max_tokens=0))
    assert (reply.route, reply.text, reply.finish_reason) == ("fixed_reply", "", "scored")


def test_the_whole_chat_is_scored() -> None:
    turns = [
        {"role": "user", "content": UNSAFE},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": SAFE},
    ]
    assert marker_guard().reply(turns).route == "fixed_reply"


def test_a_chat_may_be_a_text_a_chat_or_messages() -> None:
    guard = marker_guard()
    chats: list[ChatLike] = [SAFE, Chat.from_text(SAFE), [{"role": "user", "content": SAFE}]]
    assert {guard.reply(chat).text for chat in chats} == {SAFE}


# Streams


@pytest.mark.parametrize("text", [SAFE, UNSAFE])
def test_a_stream_yields_the_tokens_and_returns_the_reply(text: str) -> None:
    guard = marker_guard()
    tokens, reply = streamed(guard, text, SHORT)
    assert replace(reply, timings=None) == replace(guard.reply(text, SHORT), timings=None)  # type: ignore[arg-type]
    assert tuple(token.token_id for token in tokens) == reply.token_ids
    assert "".join(token.text for token in tokens) == reply.text
    assert {token.route for token in tokens} == {reply.route}


def test_a_stream_is_lazy() -> None:
    engine = FakeEngine()
    guard = marker_guard(engine)
    before = engine.num_prefills
    stream = guard.stream(SAFE)
    assert engine.num_prefills == before
    assert next(stream).text == "Tell"


def test_an_exception_of_the_caller_passes_through_a_stream() -> None:
    stream = marker_guard().stream(SAFE)
    next(stream)
    with pytest.raises(KeyError, match="of the caller"):
        stream.throw(KeyError("of the caller"))


def test_the_request_id_seeds_the_reply() -> None:
    guard = marker_guard()
    same, again, other = (guard.reply(SAFE, DRAWN, request_id=i).token_ids for i in ("a", "a", "b"))
    assert same == again
    assert same != other


def test_timings_are_in_order() -> None:
    timings = marker_guard().reply(SAFE).timings
    assert 0 < timings.prefill_s + timings.guard_s <= timings.first_token_s <= timings.total_s


# Many replies


def test_replies_come_in_the_order_of_the_chats() -> None:
    chats = [" ", *MIXED, " "]
    replies = list(marker_guard(FakeEngine(max_batch=3)).replies(chats, SHORT))
    flagged, passed = "fixed_reply", PASS
    assert [reply.route for reply in replies] == [
        ERROR, passed, flagged, passed, flagged, flagged, passed, ERROR,
    ]  # fmt: skip
    for chat, reply in zip(chats, replies, strict=True):
        assert reply.text == {ERROR: "", flagged: REFUSAL}.get(reply.route, reply.text)
        assert chat.startswith(reply.text) or reply.route == flagged


def test_a_reply_is_out_before_the_last_chat_is_taken() -> None:
    taken: list[str] = []

    def chats() -> Iterator[str]:
        for number in range(20):
            taken.append(str(number))
            yield f"Question {number}?"

    next(marker_guard(FakeEngine(max_batch=2)).replies(chats(), SHORT))
    assert len(taken) < 5


def test_no_chats_have_no_replies() -> None:
    assert list(marker_guard().replies([])) == []


def test_ids_default_to_numbers() -> None:
    guard = marker_guard()
    chats = [SAFE, "Why do foxes run?"]
    replies = list(guard.replies(chats, DRAWN))
    assert replies[1].token_ids == guard.reply(chats[1], DRAWN, request_id="1").token_ids


def test_two_requests_that_run_together_cannot_share_an_id() -> None:
    with pytest.raises(DataError, match="'x' is in use"):
        list(marker_guard().replies([SAFE, "Why?"], request_ids=["x", "x"]))


def test_a_chat_that_cannot_be_rendered_leaves_its_id_free() -> None:
    replies = marker_guard().replies([SAFE, " "], request_ids=["x", "x"])
    assert [reply.route for reply in replies] == [PASS, ERROR]


def test_fewer_ids_than_chats_are_refused() -> None:
    with pytest.raises(DataError, match="more chats than request_ids"):
        list(marker_guard().replies([SAFE, "Why?"], request_ids=["x"]))


def test_a_chat_that_fails_raises_in_its_turn_if_so_asked() -> None:
    replies = marker_guard(on_error="raise").replies([SAFE, " ", "Why?"])
    assert next(replies).route == PASS
    with pytest.raises(DemurError, match="empty"):
        next(replies)
