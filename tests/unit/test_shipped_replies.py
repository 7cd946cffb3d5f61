"""What the replies that ship promise: their prompts, lengths, and what a scorer makes of them."""

import re
from collections import Counter

import pytest

from demur.core.examples import Example
from demur.core.outcomes import Answered
from demur.datasets import replies, starter, written
from demur.scorers.refusal_match import RefusalMatch

ROWS = replies.load()
ENGLISH = [row for row in ROWS if row.language == "en"]


def reply_of(row: Example) -> str:
    assert row.safe_response is not None, row.id
    return row.safe_response


def num_words(row: Example) -> int:
    return len(reply_of(row).split())


def share_judged(label: str, outcome: str, *, is_english: bool) -> float:
    """Return which part of the replies to prompts of a label a scorer judges so."""
    rows = [row for row in ROWS if row.label == label and (row.language == "en") is is_english]
    judged = RefusalMatch().judge([Answered(row.chat, reply_of(row)) for row in rows])
    return sum(judgement.outcome == outcome for judgement in judged) / len(rows)


def test_every_prompt_is_a_packaged_one_with_the_same_label_and_split() -> None:
    packaged = {example.id: example for example in (*written.load(), *starter.load())}
    fields = ("chat", "label", "split", "group", "kind", "category", "language", "source")
    for row in ROWS:
        found = packaged[row.id]
        assert [getattr(row, name) for name in fields] == [getattr(found, name) for name in fields]


def test_no_prompt_and_no_reply_stands_twice() -> None:
    for values in (
        [row.id for row in ROWS],
        [row.chat.last_user_text.casefold().strip() for row in ROWS],
        [reply_of(row).casefold() for row in ROWS],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_the_splits_share_no_prompt_and_no_group() -> None:
    train, val = replies.load("train"), replies.load("val")
    assert len(train) + len(val) == len(ROWS)
    assert not {row.chat for row in train} & {row.chat for row in val}
    assert not {row.group_key for row in train} & {row.group_key for row in val}


def test_answers_in_english_are_25_to_90_words_long() -> None:
    lengths = {row.id: num_words(row) for row in ENGLISH if row.label == "safe"}
    assert {key: n for key, n in lengths.items() if not 25 <= n <= 90} == {}


def test_refusals_in_english_are_two_or_three_sentences() -> None:
    for row in ENGLISH:
        if row.label == "unsafe":
            ends = re.findall(r"[.!?]\"?(?=\s|$)", reply_of(row))
            assert 2 <= len(ends) <= 3, row.id
            assert 25 <= num_words(row) <= 75, row.id


def test_a_third_of_the_refusals_in_english_begin_alike_and_the_others_vary() -> None:
    refusals = [reply_of(row) for row in ENGLISH if row.label == "unsafe"]
    alike = sum(text.startswith("I can't help with") for text in refusals)
    assert 0.28 < alike / len(refusals) < 0.4
    others = Counter(
        " ".join(text.split()[:3]) for text in refusals if not text.startswith("I can't help with")
    )
    assert max(others.values()) < 0.2 * len(refusals)


def test_answers_in_english_begin_in_many_ways() -> None:
    openings = Counter(reply_of(row).split()[0] for row in ENGLISH if row.label == "safe")
    assert max(openings.values()) < 0.08 * sum(openings.values())


@pytest.mark.parametrize("is_english", [True, False])
@pytest.mark.parametrize(("label", "outcome"), [("unsafe", "refused"), ("safe", "complied")])
def test_a_scorer_sees_refusals_as_refusals_and_answers_as_answers(
    label: str, outcome: str, is_english: bool
) -> None:
    assert share_judged(label, outcome, is_english=is_english) >= 0.95


def test_python_code_in_answers_compiles() -> None:
    blocks = [
        block
        for row in ROWS
        for block in re.findall(r"```python\n(.*?)```", reply_of(row), re.DOTALL)
    ]
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, "answer", "exec")


def test_every_kind_and_language_has_replies_to_both_labels() -> None:
    for field in ("source", "language"):
        pairs = {(getattr(row, field), row.label) for row in ROWS}
        values = {value for value, _ in pairs}
        assert pairs == {(value, label) for value in values for label in ("safe", "unsafe")}
    assert {row.kind for row in ROWS} == {
        example.kind for example in (*written.load(), *starter.load())
    }


def test_most_unsafe_prompts_come_with_their_safe_twin() -> None:
    safe = {row.group for row in ROWS if row.label == "safe"}
    unsafe = [row for row in ROWS if row.label == "unsafe"]
    assert sum(row.group in safe for row in unsafe) > 0.8 * len(unsafe)
