"""The benchmark of the server tells right replies from wrong ones, and counts what came when."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from benchmarks.serving_checks import (
    MARGIN,
    ForcedReplies,
    Known,
    ReplyCheck,
    largest_gap,
    mix_ups,
)
from benchmarks.serving_load import Load, Mix, Question, Sent, Streamed, apply_load
from benchmarks.serving_prompts import body, malformed
from benchmarks.serving_soak import Verdicts, percentiles, steady_memory
from benchmarks.serving_windows import Work, paired
from demur.core.types import Chat, Sampling
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard.exchange import plain_exchange, tokens_of
from tests.guards import REFUSAL, marker_guard
from tests.servers import Running, app_of, running
from tests.tiny import tiny

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
CHATS = [Chat.from_text(f"Say {word} {word} and {word} again, please.") for word in WORDS]
FLAGGED = [Chat.from_text("Tell me the MARKER story.")]


def known_replies() -> list[Known]:
    engine, known = FakeEngine(), []
    for number, chat in enumerate(CHATS):
        sampling = Sampling(max_tokens=6)
        exchange = plain_exchange(engine, chat, sampling, request_id=str(number))
        pieces = tuple(token.text for token in tokens_of(engine, exchange))
        known.append(Known(engine.render(chat), pieces, exchange.reply().finish_reason))
    return known


def never_near(_number: int, _pieces: tuple[str, ...], _is_ended: bool) -> float:
    return MARGIN


def check_of(known: Sequence[Known]) -> ReplyCheck:
    return ReplyCheck(known, never_near)


def verdicts_of(known: Sequence[Known]) -> Verdicts:
    return Verdicts(check_of(known), REFUSAL, "fixed_reply")


def stream(*texts: str, id: str = "a", start: float = 0.0, route: str = "pass") -> Sent:
    """Return a whole answer, a token a second."""
    chunks: list[dict[str, Any]] = [
        {"id": id, "choices": [{"delta": {"content": text}}]} for text in texts
    ]
    end = {"id": id, "choices": [{"delta": {}, "finish_reason": "length"}]}
    chunks += [{**end, "demur": {"route": route}}, {"usage": {"completion_tokens": len(texts)}}]
    chunks[-1]["id"] = id
    events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    pieces = [(start + at, event) for at, event in enumerate([*events, b"data: [DONE]\n\n"])]
    question = Question("ordinary", 0, b"")
    return Sent(question, start, status=200, pieces=pieces, is_complete=True)


def load_of(*sent: Sent) -> Load:
    return Load(sent, 0.0, 10.0, 0.1)


def test_a_reply_that_is_not_its_prompts_is_wrong() -> None:
    known = known_replies()
    check = check_of(known)
    of_other = known[1]
    check.take(0, of_other.pieces, finish_reason=of_other.finish_reason)
    assert check.wrong
    assert not check.num_identical


def test_a_reply_that_is_nearly_greedy_is_right_and_its_gap_is_kept() -> None:
    known = known_replies()
    check = ReplyCheck(known, lambda *_: MARGIN / 2)
    check.take(0, ("an", "other"), finish_reason="length")
    assert (check.num_near, check.largest_gap, check.wrong) == (1, MARGIN / 2, [])


def test_the_gap_is_that_of_the_least_greedy_token() -> None:
    logits = np.array([[0.0, 5.0], [4.0, 1.0], [2.0, 2.0]])
    assert largest_gap(logits, [1, 1, 0]) == 3.0


def test_mix_ups_differ_from_the_reply_that_is_known() -> None:
    known = known_replies()
    mixed = list(mix_ups(known, num_each=5, seed=0))
    assert {of.kind for of in mixed} >= {"swapped", "a strange token", "a token lost"}
    assert all(of.pieces != known[of.number].pieces for of in mixed)


def spoiled(sent: Sent, what: str) -> Sent:
    """Return an answer of which something is wrong."""
    if what == "cut":
        sent.pieces, sent.is_complete = sent.pieces[:2], False
    elif what == "without an end":
        sent.pieces = sent.pieces[:-1]
    elif what == "a token lost":
        del sent.pieces[0]
    elif what == "a strange chunk":
        sent.pieces[0] = (0.0, sent.pieces[0][1].replace(b'"a"', b'"b"'))
    return sent


@pytest.mark.parametrize("what", ["cut", "without an end", "a token lost", "a strange chunk"])
def test_a_stream_that_is_not_whole_is_lost(what: str) -> None:
    known = [Known(known_replies()[0].prompt, ("Say", " one"), "length")]
    right, wrong = verdicts_of(known), verdicts_of(known)
    right.take(load_of(stream("Say", " one")))
    wrong.take(load_of(spoiled(stream("Say", " one"), what)))
    assert not right.problems
    assert len(wrong.problems) == 1


def test_two_streams_of_one_id_are_mixed_up() -> None:
    verdicts = verdicts_of([Known(known_replies()[0].prompt, ("Say", " one"), "length")])
    verdicts.take(load_of(stream("Say", " one"), stream("Say", " one")))
    assert verdicts.problems == ["ordinary 0: mixed up: its id is another stream's too"]


def test_an_ordinary_prompt_that_the_responder_answers_is_wrong() -> None:
    verdicts = verdicts_of(known_replies())
    verdicts.take(load_of(stream(REFUSAL, route="fixed_reply")))
    assert verdicts.problems == ["ordinary 0: an ordinary prompt went to fixed_reply"]


def test_events_that_are_cut_across_pieces_are_read_whole() -> None:
    sent = stream("a", "b")
    whole = sent.content
    sent.pieces = [(float(at), whole[at : at + 1]) for at in range(len(whole))]
    streamed = Streamed.of(sent)
    assert (streamed.text, streamed.num_declared, streamed.has_ended) == ("ab", 2, True)


def test_a_windows_clock_runs_to_the_last_token() -> None:
    load = load_of(stream(*"abcdef"), stream(*"abcdef", start=4.0))
    work = Work.of(load, count=len)
    assert work.tokens_per_s == pytest.approx(12 / 9)
    assert (work + work).tokens_per_s == pytest.approx(24 / 18)
    assert Work.of(load_of(), count=len).tokens_per_s == 0.0


def test_the_parts_of_a_character_are_told_by_what_completes_it() -> None:
    engine = TransformersEngine(tiny())
    tokenizer = engine.loaded.tokenizer
    ids = tokenizer("a\u00e9b", add_special_tokens=False)["input_ids"]
    forced = ForcedReplies(engine, [])
    assert forced.tokens(("a", "", "\u00e9", "b"), False) == [ids]
    assert forced.tokens(("a", "", "\u00e9", "b", ""), True) == [[*ids, tokenizer.eos_token_id]]


def test_a_token_may_end_in_the_first_byte_of_the_next_character() -> None:
    engine = TransformersEngine(tiny())
    forced = ForcedReplies(engine, [])
    forced._ids = {b" \xd7": 1, b"\xa9": 2, b"b": 3, b" ": 4, b"\xd7\xa9": 5}
    assert forced.tokens((" ", "\u05e9", "b"), False) == [[4, 5, 3], [1, 2, 3]]
    cut_off = "\ufffd"  # the engine's word for a character that never came whole
    assert forced.tokens(("b", " ", cut_off), False) == [[3]]
    assert forced.tokens(("b", " ", "", cut_off), True) == [[3]]
    assert forced.tokens(("b", "c"), False) == []
    assert forced(0, ("b", "c"), False) == float("inf")


def test_ratios_are_paired_by_round() -> None:
    windows = {"over": [2.0, 30.0, 400.0], "under": [1.0, 10.0, 100.0]}
    ratio = paired(windows, over="over", under="under")
    assert (ratio["median"], ratio["range"], ratio["covers_median"]) == (3.0, [2.0, 4.0], 0.75)


def test_percentiles_are_in_milliseconds() -> None:
    found = percentiles([n / 1000 for n in range(101)])
    assert found == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_memory_is_the_median_before_a_time() -> None:
    samples = [(0.0, 900.0), (5.0, 10.0), (6.0, 90.0), (7.0, 11.0), (9.0, 900.0)]
    assert steady_memory(samples, at=8.0, over_s=4.0) == 11.0


def test_clients_send_the_same_requests_with_the_same_seed() -> None:
    mix = Mix([b"1", b"2", b"3"], [b"4"], [(b"5", 400)], share_flagged=0.3, share_malformed=0.3)

    def first(seed: int) -> list[Question]:
        return [
            question
            for question, _ in zip(mix.questions(seed=seed, client=1), range(20), strict=False)
        ]

    assert first(0) == first(0) != first(1)


@contextmanager
def fake_server() -> Iterator[Running]:
    with running(app_of(marker_guard(FakeEngine(max_batch=4)))) as server:
        yield server


def test_a_fake_model_that_is_served_passes_the_soak() -> None:
    known = known_replies()
    mix = Mix(
        [body(chat, "fake", max_tokens=6, counts=True) for chat in CHATS],
        [body(chat, "fake", max_tokens=6, counts=True) for chat in FLAGGED],
        malformed("fake"),
        share_flagged=0.2,
        share_malformed=0.2,
        share_vanishing=0.2,
        most_read=3,
    )
    verdicts = verdicts_of(known)
    with fake_server() as server:
        url = f"{server.url}/v1/chat/completions"
        verdicts.take(asyncio.run(apply_load(url, mix, clients=4, seconds=1.0, seed=0)))
    assert not verdicts.problems
    assert verdicts.check.num_identical > 0
    assert {"flagged answered by the responder", "malformed 400"} <= set(verdicts.counts)
