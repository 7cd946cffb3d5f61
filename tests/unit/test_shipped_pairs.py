"""The pairs that ship: what twins share, their lengths, and what a scorer makes of the replies."""

from collections import Counter

import numpy as np

from demur.core.outcomes import Answered
from demur.datasets import pairs, replies, starter, written
from demur.scorers.refusal_match import RefusalMatch

ROWS = pairs.load()
TWINS = [(ROWS[row], ROWS[row + 1]) for row in range(0, len(ROWS), 2)]


def test_each_pair_has_both_labels_and_shares_all_but_its_words() -> None:
    assert len(TWINS) >= 600
    for safe, unsafe in TWINS:
        assert (safe.label, unsafe.label) == ("safe", "unsafe")
        for name in ("group", "split", "category", "kind", "source", "language"):
            assert getattr(safe, name) == getattr(unsafe, name), safe.id
        assert safe.is_look_alike
    assert len({safe.group for safe, _ in TWINS}) == len(TWINS)


def test_twins_share_words_that_other_pairs_do_not() -> None:
    words = [
        [set(of.chat.last_user_text.casefold().rstrip("?.!").split()) for of in pair]
        for pair in TWINS
    ]
    shared = [len(safe & unsafe) for safe, unsafe in words]
    with_others = [len(words[row][0] & words[row - 7][1]) for row in range(len(words))]
    assert np.mean(shared) > 2 * np.mean(with_others)


def test_prompts_are_short_and_no_longer_on_one_side() -> None:
    lengths = np.array([[len(of.chat.last_user_text.split()) for of in pair] for pair in TWINS])
    assert lengths.min() >= 4
    assert lengths.max() <= 14
    assert abs(np.diff(lengths.mean(0))) < 1


def test_no_prompt_and_no_reply_stands_twice_nor_in_another_set_that_ships() -> None:
    texts = [row.chat.last_user_text.casefold() for row in ROWS]
    answers = [row.safe_response for row in ROWS if row.safe_response]
    for values in ([row.id for row in ROWS], texts, answers):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    others = (*written.load(), *starter.load(), *replies.load())
    assert not set(texts) & {row.chat.last_user_text.casefold() for row in others}


def test_harmless_prompts_are_answered_and_most_of_the_others_refused() -> None:
    for label, outcome, least in (("safe", "complied", 1.0), ("unsafe", "refused", 0.7)):
        rows = [row for row in ROWS if row.label == label]
        said = [(row, row.safe_response) for row in rows if row.safe_response]
        assert len(said) >= least * len(rows)
        judged = RefusalMatch().judge([Answered(row.chat, text) for row, text in said])
        assert {str(of.outcome) for of in judged} == {outcome}


def test_a_tenth_of_the_pairs_is_held_out() -> None:
    train, val = pairs.load("train"), pairs.load("val")
    assert len(train) + len(val) == len(ROWS)
    assert 0.08 < len(val) / len(ROWS) < 0.12
    assert not {row.group for row in train} & {row.group for row in val}
