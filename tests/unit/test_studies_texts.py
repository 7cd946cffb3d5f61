"""The texts of changed and attacked prompts: edits, rewrites, padding, and dialogues."""

import base64
import codecs
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.types import Chat
from demur.datasets import dialogues
from demur.studies import _edits
from demur.studies._edits import ENCODINGS, READABLE, Place, padded
from demur.studies._rewriting import chance_within, rewrites
from demur.studies._texts import study_texts
from demur.studies._transformations import short_transformations
from demur.studies.attacks import EDITS
from tests.judged_studies import (
    TEXT,
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_there_are_twenty_system_prompts() -> None:
    assert len(set(study_texts().system_prompts)) == 20


def test_every_template_has_one_place_for_the_prompt() -> None:
    texts = study_texts()
    for template in (*texts.wrappers.values(), *texts.framings.values()):
        assert template.count("{text}") == 1


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_same_for_the_same_draw_and_changes_the_text(name: str) -> None:
    edited = EDITS[name](TEXT, generator())
    assert edited == EDITS[name](TEXT, generator())
    assert edited != TEXT


def test_base64_and_rot13_hold_the_text() -> None:
    coded = ENCODINGS["base64"](TEXT, generator()).split(": ")[1]
    assert base64.b64decode(coded).decode() == TEXT
    turned = ENCODINGS["ROT13"](TEXT, generator()).split(": ")[1]
    assert codecs.decode(turned, "rot13") == TEXT


def test_a_text_in_pieces_can_be_joined_again() -> None:
    parts = ENCODINGS["in pieces"](TEXT, generator()).split('"')
    assert f"{parts[1]} {parts[3]}" == TEXT


def test_random_case_changes_case_only() -> None:
    assert READABLE["random case"](TEXT, generator()).lower() == TEXT.lower()


def test_typos_leave_the_first_letter_of_each_word() -> None:
    edited = _edits.typos(TEXT, generator())
    assert [word[0] for word in edited.split()] == [word[0] for word in TEXT.split()]


def test_only_words_with_synonyms_are_replaced() -> None:
    known = study_texts().synonyms
    edited = _edits.synonyms("Kindly make stairs", generator())
    assert edited in {f"Kindly {other} stairs" for other in (*known["make"], "make")}


@pytest.mark.parametrize(("place", "share"), [("start", 0.0), ("middle", 0.5), ("end", 1.0)])
def test_padding_has_its_length_and_the_prompt_in_its_place(place: Place, share: float) -> None:
    words = padded("PROMPT", generator(), num_words=2500, place=place).split()
    assert len(words) == 2501
    assert words.index("PROMPT") == round(share * 2500)


def test_a_truncated_prompt_keeps_the_words_that_it_should() -> None:
    chat = Chat.from_text("one two three four")
    texts = {t.name: t.change(chat, generator()).last_user_text for t in short_transformations()}
    assert texts["first half"] == "one two"
    assert texts["first three quarters"] == "one two three"
    assert texts["last half"] == "three four"


def test_system_prompts_leave_the_user_alone() -> None:
    chat = Chat.from_text(TEXT)
    systems = [t for t in short_transformations() if t.family == "system prompt"]
    changed = [t.change(chat, generator()) for t in systems]
    assert [of.messages[0].content for of in changed] == list(study_texts().system_prompts)
    assert {of.last_user_text for of in changed} == {TEXT}


def test_fewer_rewrites_are_the_first_of_more() -> None:
    few, many = (rewrites(TEXT, n, encoded_share=0.3, seed=(1, 2)) for n in (3, 9))
    assert many[:3] == few
    assert len({of.text for of in many}) > 6


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rewrites_are_readable_unless_they_are_encoded(share: float) -> None:
    found = rewrites(TEXT, 8, encoded_share=share, seed=(0,))
    assert {of.is_readable for of in found} == {share == 0.0}


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        rewrites(TEXT, 1, encoded_share=1.5, seed=(0,))


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_the_chance_within_a_budget_is_that_of_all_draws(budget: int) -> None:
    evades = [True, False, False, True, False]
    draws = [any(draw) for draw in combinations(evades, budget)]
    found = chance_within(budget, np.array([5]), np.array([2]))
    assert found[0] == pytest.approx(np.mean(draws))


# Dialogues


def test_dialogues_come_in_pairs_that_differ_in_the_request_only() -> None:
    pairs: dict[str, list[Example]] = {}
    for example in dialogues.load():
        pairs.setdefault(example.group_key, []).append(example)
    assert len(pairs) == 24
    for first, second in pairs.values():
        assert {first.label, second.label} == {"unsafe", "safe"}
        assert [m.role for m in first.chat.messages] == [m.role for m in second.chat.messages]
        differing = [
            a.role for a, b in zip(first.chat.messages, second.chat.messages, strict=True) if a != b
        ]
        assert set(differing) == {"tool" if first.kind == "tool result" else "user"}
        assert (len(differing) > 1) == ("spread" in str(first.kind))


def test_the_shape_of_a_dialogue_is_that_of_its_name() -> None:
    shapes = Counter(str(example.kind) for example in dialogues.load())
    assert len(shapes) == 10
    for example in dialogues.load():
        roles = [message.role for message in example.chat.messages]
        if example.kind == "tool result":
            assert roles == ["user", "assistant", "tool"]
        else:
            assert roles.count("user") == int(str(example.kind)[0])
            assert roles[-1] == "user"
