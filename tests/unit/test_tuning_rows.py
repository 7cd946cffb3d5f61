"""Rows that adapters are trained on: their labels, by hand, and what cannot be made."""

from typing import Any

import numpy as np
import pytest

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.types import Chat
from demur.modeling.labelled import IGNORE
from demur.trainers._rows import Row, Said, Words
from demur.trainers._said import Limits, after_blank, read_corpus, words_of
from demur.trainers.derta import DertaTrainer, kept
from tests.tiny import tiny

# Of the byte tokenizer: "!" is 0 and so on, a line break is 198, a blank 220, markers 256 and 257.
PROMPT = (256, 84, 82, 68, 81, 198, 71, 72, 257, 198, 256, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198)
"""A user turn that says "hi", and the assistant's header."""
NO, BLANK_NO, END = (45, 78), (220, 45, 78), 257
ABC = (64, 65, 66)
LIMITS = Limits(max_prompt_tokens=64, max_reply_tokens=32)


def unsafe(**given: Any) -> Example:
    return Example("u", Chat.from_text("hi"), "unsafe", **{"safe_response": "No", **given})


def safe(**given: Any) -> Example:
    return Example("s", Chat.from_text("hi"), "safe", **{"safe_response": "No", **given})


def said(example: Example, limits: Limits = LIMITS) -> Said:
    return read_corpus(tiny(), [example], limits=limits, seed=0).said[0]


def ignored(number: int) -> tuple[int, ...]:
    return (IGNORE,) * number


def test_a_refusal_is_learnt_with_its_end_and_nothing_of_the_prompt() -> None:
    row = said(unsafe()).reply()
    assert row == Row("refusal", (*PROMPT, *NO), (*ignored(20), *NO, END))


def test_an_answer_is_learnt_with_its_end_and_nothing_of_the_prompt() -> None:
    row = said(safe()).reply()
    assert row == Row("helpful", (*PROMPT, *NO), (*ignored(20), *NO, END))


def test_a_reply_that_is_cut_has_no_end() -> None:
    row = said(unsafe(), Limits(64, 1)).reply()
    assert row == Row("refusal", (*PROMPT,), (*ignored(20), NO[0]))


def test_a_refusal_after_harmful_text_is_learnt_without_that_text() -> None:
    row = said(unsafe(harmful_response="abc")).prefix_refusal(2)
    assert row.kind == "prefix_refusal"
    assert row.token_ids == (*PROMPT, 64, 65, *BLANK_NO)
    assert row.labels == (*ignored(22), *BLANK_NO, END)
    assert row.harmful == range(21, 23)


def test_a_prefix_of_no_tokens_is_a_plain_refusal() -> None:
    of = said(unsafe(harmful_response="abc"))
    assert of.prefix_refusal(0) == of.reply()


def test_a_transition_learns_a_refusals_first_token_in_place_of_harmful_ones() -> None:
    row = said(unsafe(harmful_response="abc")).transition(words_of(tiny(), "Sorry"), [0, 1, 2])
    assert row.kind == "transition"
    assert row.token_ids == (*PROMPT, 64, 65)
    assert row.labels == (*ignored(20), 50, 220, 220)  # "S", then the blank before it


def test_a_transition_keeps_the_labels_that_were_not_dropped() -> None:
    of, words = said(unsafe(harmful_response="abc")), Words(50, 220)
    assert of.transition(words, [1]).labels == (*ignored(21), 220)
    assert of.transition(words, [1]).token_ids == (*PROMPT, 64)
    assert of.transition(words, [0, 2]).labels == (*ignored(20), 50, IGNORE, 220)


def test_a_pair_is_the_wanted_reply_and_the_harmful_one() -> None:
    chosen, rejected = said(unsafe(harmful_response="abc")).pair()
    assert chosen == Row("chosen", (*PROMPT, *NO), (*ignored(20), *NO, END))
    assert rejected.kind == "rejected"
    assert rejected.token_ids == (*PROMPT, *ABC)
    assert rejected.labels == (*ignored(20), *ABC, END)


def test_a_pair_takes_another_rejected_reply_where_there_is_one() -> None:
    _, rejected = said(unsafe(harmful_response="abc", rejected="ba")).pair()
    assert rejected.labels == (*ignored(20), 65, 64, END)


def test_the_unwanted_reply_to_a_safe_prompt_is_a_refusal_that_ships() -> None:
    of = said(safe(), Limits(64, 400))
    text = tiny().tokenizer.decode(of.rejected[:-1])
    assert of.rejected != of.safe
    assert any(word in text for word in ("can't", "cannot", "won't", "unable", "decline", "not"))


def test_replies_are_split_by_themselves_and_never_with_the_prompt() -> None:
    loaded = tiny()
    of = said(unsafe(safe_response=" No", harmful_response="\nabc"))
    assert of.safe == (*BLANK_NO, END)
    assert of.within == (*BLANK_NO, END)
    assert of.harmful == (198, *ABC)
    assert of.prompt == PROMPT
    assert loaded.tokenizer.decode(of.prompt).endswith("assistant\n")


@pytest.mark.parametrize("kind", [None, "", "harmful", "safe"])
def test_a_row_without_its_type_cannot_be_made(kind: Any) -> None:
    with pytest.raises(DataError, match="without its type"):
        Row(kind, (1, 2), (2, 3))


@pytest.mark.parametrize("kind", ["helpful", "refusal", "prefix_refusal", "chosen"])
def test_harmful_text_cannot_be_learnt(kind: Any) -> None:
    with pytest.raises(DataError, match="trained on harmful text"):
        Row(kind, (1, 2, 3), (IGNORE, 3, 4), range(2, 4))


def test_a_transition_whose_labels_were_lost_cannot_be_made() -> None:
    with pytest.raises(DataError, match="trained on harmful text"):
        Row("transition", (1, 2, 3), (IGNORE, 3, 4), range(2, 4), frozenset({50, 220}))


def test_a_row_without_labels_cannot_be_made() -> None:
    with pytest.raises(DataError, match="no label"):
        Row("refusal", (1, 2), ignored(2))


def test_a_row_with_too_few_labels_cannot_be_made() -> None:
    with pytest.raises(DataError, match="one for each"):
        Row("refusal", (1, 2), (2,))


def test_no_response_to_an_unsafe_prompt_is_learnt_unless_it_is_labelled_safe() -> None:
    given = {"safe_response": None, "response": "abc"}
    for label in (None, "unsafe"):
        of = said(unsafe(**given, response_label=label))
        assert of.safe[:3] != ABC
    assert said(unsafe(**given, response_label="safe")).safe == (*ABC, END)


def test_no_response_to_a_safe_prompt_is_learnt_if_it_is_labelled_unsafe() -> None:
    given = {"safe_response": None, "response": "abc"}
    assert said(safe(**given, response_label="unsafe")).safe == ()
    assert said(safe(**given)).safe == (*ABC, END)


def test_a_safe_prompt_with_a_harmful_reply_is_refused() -> None:
    with pytest.raises(DataError, match="correct the label"):
        said(safe(harmful_response="abc"))


def test_prompts_that_are_too_long_are_left_out_and_counted() -> None:
    corpus = read_corpus(tiny(), [unsafe()], limits=Limits(20, 8), seed=0)
    assert (corpus.said, corpus.num_too_long) == ([], 1)


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused() -> None:
    with pytest.raises(DataError, match="takes at most 512"):
        said(unsafe(), Limits(64, 500))


def test_the_share_of_labels_that_is_kept_is_the_one_asked_for() -> None:
    generator = np.random.default_rng(0)
    counts = [len(kept(50, 0.8, generator)) for _ in range(2000)]
    assert np.mean(counts) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("number", [1, 2, 30])
def test_one_label_at_least_is_kept(number: int) -> None:
    generator = np.random.default_rng(0)
    draws = [kept(number, 0.999, generator) for _ in range(500)]
    assert all(draw for draw in draws)
    assert {place for draw in draws for place in draw} == set(range(number))


def test_nothing_is_dropped_where_nothing_should_be() -> None:
    assert kept(4, 0.0, np.random.default_rng(0)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("both", ["refusal", "transition", "prefix_refusal", "transition"]),
        ("prefix", ["refusal", "refusal", "prefix_refusal", "prefix_refusal"]),
        ("transition", ["refusal", "transition", "refusal", "transition"]),
    ],
)
def test_the_ablations_have_the_papers_rows(rows: Any, expected: list[str]) -> None:
    of = said(unsafe(harmful_response="abc"))
    items = DertaTrainer(rows=rows).items(tiny(), [of, of])
    generator = np.random.default_rng(0)
    assert [item(generator)[0].kind for item in items.unsafe] == expected


def test_after_a_harmful_beginning_a_refusal_starts_with_the_word() -> None:
    loaded = tiny()
    for refusal, expected in (("No", " Sorry. No"), ("Sorry, no", " Sorry, no")):
        of = said(unsafe(harmful_response="abc", safe_response=refusal))
        plain, _, after, _ = DertaTrainer().items(loaded, [of, of]).unsafe
        (row,) = after(np.random.default_rng(0))
        learnt = [label for label in row.labels if label != IGNORE]
        assert loaded.tokenizer.decode(learnt, skip_special_tokens=True) == expected
        assert plain(np.random.default_rng(0)) == (of.reply(),)


def test_prefixes_have_all_lengths_but_the_whole_reply() -> None:
    of = said(unsafe(harmful_response="abcd"))
    item = DertaTrainer(plain_every=2).items(tiny(), [of, of]).unsafe[2]
    generator = np.random.default_rng(0)
    lengths = {len(item(generator)[0].harmful) for _ in range(200)}
    assert lengths == {1, 2, 3}


def test_a_blank_goes_before_scripts_that_have_blanks() -> None:
    assert [after_blank(text) for text in (" No", "Нет", "不")] == [" No", " Нет", "不"]
