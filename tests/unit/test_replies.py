"""The replies that a reply detector learns from: labelled ones, and the model's own."""

from pathlib import Path

import pytest

from demur.core.errors import DataError
from demur.core.examples import Example, Label
from demur.core.types import Chat, Sampling
from demur.engines.fake import FakeEngine
from demur.guard.exchange import plain_replies
from demur.workflows.replies import OwnReplies, labelled_replies, to_be_answered

SAMPLING = Sampling(max_tokens=12)


def reply_to(
    text: str, response: str | None, label: Label | None, *, group: str | None = None
) -> Example:
    return Example(
        text, Chat.from_text(text), "unsafe", group, response=response, response_label=label
    )


def prompts(*texts: str) -> list[Example]:
    return to_be_answered([Example(text, Chat.from_text(text)) for text in texts])


def test_a_reply_counts_by_its_own_label() -> None:
    rows = [reply_to("a", "no", "safe"), reply_to("b", "sure", "unsafe")]
    assert [row.label for row in labelled_replies(rows)] == ["safe", "unsafe"]


@pytest.mark.parametrize(("response", "label"), [(None, "safe"), ("yes", None)])
def test_a_row_without_a_labelled_reply_is_left_out(
    response: str | None, label: Label | None
) -> None:
    found = labelled_replies([reply_to("a", response, label), reply_to("b", "no", "safe")])
    assert [row.id for row in found] == ["b"]


def test_an_empty_labelled_reply_is_refused() -> None:
    with pytest.raises(DataError, match=r"empty .* that of 'b'"):
        labelled_replies([reply_to("a", "no", "safe"), reply_to("b", " \n", "safe")])


def test_replies_to_one_prompt_are_a_group() -> None:
    rows = [
        reply_to("a", "no", "safe"),
        reply_to("a", "sure", "unsafe"),
        reply_to("b", "x", "safe"),
    ]
    first, second, other = (row.group_key for row in labelled_replies(rows))
    assert first == second != other


def test_a_group_that_was_given_stays() -> None:
    (found,) = labelled_replies([reply_to("a", "no", "safe", group="g")])
    assert found.group_key == "g"


def test_own_replies_to_unsafe_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="the first is 'b'"):
        to_be_answered(
            [Example("a", Chat.from_text("a")), Example("b", Chat.from_text("b"), "unsafe")]
        )


def test_a_reply_that_the_data_give_is_not_the_models_own() -> None:
    (found,) = to_be_answered([Example("a", Chat.from_text("a"), "safe", response="theirs")])
    assert (found.response, found.label) == (None, "safe")


def test_the_model_answers_what_has_no_reply(tmp_path: Path) -> None:
    engine = FakeEngine()
    rows = [*prompts("tell me more", "and then"), reply_to("x", "given", "safe")]
    found = OwnReplies(engine, SAMPLING, tmp_path).fill_in(rows)
    expected = [
        reply.text for reply in plain_replies(engine, ["tell me more", "and then"], SAMPLING)
    ]
    assert [row.response for row in found] == [*expected, "given"]


def test_a_reply_is_drawn_once(tmp_path: Path) -> None:
    first = OwnReplies(FakeEngine(), SAMPLING, tmp_path).fill_in(prompts("one", "two"))
    engine = FakeEngine()
    again = OwnReplies(engine, SAMPLING, tmp_path).fill_in(prompts("two", "one"))
    assert engine.num_prefills == 0
    assert [row.response for row in again] == [row.response for row in first[::-1]]


def test_only_missing_replies_are_drawn_after_an_interruption(tmp_path: Path) -> None:
    own = OwnReplies(FakeEngine(), SAMPLING, tmp_path)
    whole = own.fill_in(prompts("one", "two"))
    content = own.path.read_text()
    own.path.write_text(content[: content.rindex("response") + 5])  # cut off while writing
    engine = FakeEngine()
    reports: list[tuple[int, int]] = []
    again = OwnReplies(engine, SAMPLING, tmp_path).fill_in(
        prompts("one", "two"), report=lambda done, total: reports.append((done, total))
    )
    assert engine.num_prefills == 1
    assert reports == [(1, 1)]
    assert again == whole
    assert OwnReplies(FakeEngine(), SAMPLING, tmp_path).fill_in(prompts("one", "two")) == whole


def test_another_way_of_drawing_has_replies_of_its_own(tmp_path: Path) -> None:
    paths = {
        OwnReplies(FakeEngine(seed=seed), sampling, tmp_path).path
        for seed in (0, 1)
        for sampling in (SAMPLING, Sampling(max_tokens=13))
    }
    assert len(paths) >= 2
    short = OwnReplies(FakeEngine(), Sampling(max_tokens=1), tmp_path).fill_in(prompts("a b c"))
    longer = OwnReplies(FakeEngine(), SAMPLING, tmp_path).fill_in(prompts("a b c"))
    assert len(str(short[0].response)) < len(str(longer[0].response))


def test_no_prompt_stands_in_the_file(tmp_path: Path) -> None:
    own = OwnReplies(FakeEngine(), Sampling(max_tokens=1), tmp_path)
    own.fill_in(prompts("tell me everything about herons"))
    assert "herons" not in own.path.read_text()


def test_an_empty_reply_is_left_out(tmp_path: Path) -> None:
    own = OwnReplies(FakeEngine(), Sampling(max_tokens=12, stop=("tell",)), tmp_path)
    assert [row.id for row in own.fill_in(prompts("tell me", "say it"))] == ["say it"]


def test_a_prompt_that_cannot_be_answered_is_named(tmp_path: Path) -> None:
    engine = FakeEngine()
    own = OwnReplies(engine, SAMPLING, tmp_path)
    long = "word " * (engine.max_tokens + 1)
    with pytest.raises(DataError, match="could not be answered"):
        own.fill_in(prompts(long))
