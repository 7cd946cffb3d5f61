"""Passes of their own as data: reads, values that are made when somebody looks, and the disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.readings import Array, Deferred, Readings
from demur.core.reads import SELF, CaptureSpec, OwnPass, in_prefill, read_from_dict
from demur.core.templates import family, find, said
from demur.core.types import Chat, Message
from demur.modeling.own_pass import OwnPasses
from demur.workflows.own_passes import StoredPasses
from tests.tiny_guards import served

READ = OwnPass(SELF, "prompted:6", (("1",), ("0",)))
CHATS = tuple(Chat.from_text(text) for text in ("One.", "Two.", "Three.", "Four."))


class Counted(OwnPasses):
    """Counts the chats that were asked about."""

    num_asked = 0

    def values_of(self, read: OwnPass, chats: Sequence[Chat]) -> Array:
        self.num_asked += len(chats)
        return super().values_of(read, chats)


def counted() -> Counted:
    return Counted(served("{{ messages[0].content }}"))


def test_a_read_is_the_same_after_a_journey_through_json() -> None:
    read = OwnPass("a/b", "classifier", (("toxic", "threat"), ()), normalise="labels")
    assert read_from_dict(read.as_dict()) == read
    assert in_prefill((read, CaptureSpec((-1,)))) == (CaptureSpec((-1,)),)


@pytest.mark.parametrize(
    ("labels", "normalise"),
    [
        ((("Yes",),), "vocabulary"),
        ((("Yes",), ("Yes", "No")), "vocabulary"),
        (((), ()), "vocabulary"),
        ((("Yes",), ("",)), "vocabulary"),
        ((("Yes",), ("No",)), "neither"),
    ],
)
def test_labels_that_no_pass_could_answer_are_refused(labels: Any, normalise: Any) -> None:
    with pytest.raises(ConfigError):
        OwnPass(SELF, "prompted:0", labels, normalise)


@pytest.mark.parametrize("fields", [{}, {"labels": 3}, {"labels": [["a"], ["b"]], "more": 1}])
def test_fields_that_are_no_pass_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="not a pass of its own"):
        read_from_dict({"own_pass": fields})


def test_taking_and_joining_runs_nothing_and_looking_runs_once() -> None:
    passes = counted()
    readings = Readings({READ: Deferred(passes, READ, CHATS)})
    parts = [readings.take([3]), readings.take([0, 1])]
    joined = Readings.concatenate(parts)
    assert (len(joined), passes.num_asked) == (3, 0)
    first, second = joined.log_probabilities(READ), joined.log_probabilities(READ)
    assert passes.num_asked == 3
    assert first is second
    expected = passes.values_of(READ, [CHATS[3], CHATS[0], CHATS[1]])
    np.testing.assert_array_equal(first, expected)


def test_values_that_are_missing_or_not_finite_are_refused() -> None:
    with pytest.raises(CapabilityError, match="do not hold"):
        Readings({}).log_probabilities(READ)
    with pytest.raises(DataError, match="is not finite"):
        Readings({READ: np.array([[0.0, np.nan]])}).log_probabilities(READ)


def test_a_chat_is_asked_about_once_whatever_set_it_stands_in(tmp_path: Path) -> None:
    passes = counted()
    stored = StoredPasses(passes, tmp_path)
    first = stored.values_of(READ, CHATS[:2])
    both = StoredPasses(passes, tmp_path).values_of(READ, [CHATS[2], CHATS[1], CHATS[2]])
    assert passes.num_asked == 3
    np.testing.assert_array_equal(both[1], first[1])
    np.testing.assert_array_equal(both[0], passes.values_of(READ, CHATS[2:3])[0])


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    passes = counted()
    stored = StoredPasses(passes, tmp_path)
    expected = stored.values_of(READ, CHATS)
    path = stored.path(READ)
    path.write_bytes(path.read_bytes()[:-20])
    np.testing.assert_array_equal(stored.values_of(READ, CHATS), expected)
    assert passes.num_asked == len(CHATS) + 1
    stored.values_of(READ, CHATS)
    assert passes.num_asked == len(CHATS) + 1


def test_another_question_or_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    stored = StoredPasses(counted(), tmp_path)
    other_question = OwnPass(SELF, "prompted:7", READ.labels)
    other_model = StoredPasses(Counted(served("{{ messages[0].content }}!")), tmp_path)
    paths = {stored.path(READ), stored.path(other_question), other_model.path(READ)}
    assert len(paths) == 3


def test_no_prompt_stands_on_the_disk(tmp_path: Path) -> None:
    StoredPasses(counted(), tmp_path).values_of(READ, CHATS)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Three" not in content


def test_a_chat_of_several_turns_is_asked_about_as_a_whole() -> None:
    turns = (("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Why?"))
    chat = Chat(tuple(Message(role, text) for role, text in turns))  # type: ignore[arg-type]
    assert said(chat) == "User: Hi.\n\nAssistant: Hello.\n\nUser: Why?"
    wrapped = find("prompted:9").wrapped(chat)
    assert [message.role for message in wrapped.messages] == ["user"]
    assert f"Message:\n{said(chat)}\n\nYour decision" in wrapped.messages[0].content


def test_ten_wrappers_hold_the_prompt_once_and_know_both_answers() -> None:
    wrappers = family("prompted")
    assert len({wrapper.text for wrapper in wrappers}) == 10
    for wrapper in wrappers:
        assert wrapper.text.count("{prompt}") == 1
        assert set(wrapper.labels) == {"unsafe", "safe"}
        assert wrapper.labels["unsafe"][0] in wrapper.text
