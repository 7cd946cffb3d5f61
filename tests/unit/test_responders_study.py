"""Responders side by side: roles, arms, changes and trade-offs on planted outcomes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.guard.exchange import plain_replies
from demur.guard.kept_replies import KeptReply
from demur.responders.fixed_reply import FixedReply
from demur.studies._answers import Answers
from demur.studies._arms import Arm, Comparison, arm_rows, paired_change
from demur.studies._cases import Cases, cases_of, role_of
from demur.studies._outcomes import Labelling, Outcomes
from demur.studies.responders import Responders
from tests.guards import SAFE, UNSAFE, marker_detector


def example(id: str, label: str, **fields: str) -> Example:
    chat = Chat.from_text(f"prompt {id}")
    return Example(id, chat, label, **fields)  # type: ignore[arg-type]


def outcomes(words: list[str]) -> Outcomes:
    array = np.array(words)
    number = len(words)
    return Outcomes(array, array, np.zeros(number, bool), np.full(number, 2.0))


def cases(roles: list[str]) -> Cases:
    labels = ["unsafe" if role == "unsafe" else "safe" for role in roles]
    examples = tuple(example(str(row), label) for row, label in enumerate(labels))
    return Cases(examples, np.array(roles))


@pytest.mark.parametrize(
    ("found", "role"),
    [
        (example("1", "unsafe", source="xstest"), "unsafe"),
        (example("1", "safe", source="xstest"), "look_alike"),
        (example("1", "safe", kind="look_alike"), "look_alike"),
        (example("1", "safe", source="alpaca_eval"), "ordinary"),
    ],
)
def test_a_prompts_role(found: Example, role: str) -> None:
    assert role_of(found) == role


def test_a_prompt_without_a_label_has_no_role() -> None:
    with pytest.raises(DataError, match="has no label"):
        role_of(Example("7", Chat.from_text("x")))


def test_roles_are_filled_evenly_from_all_sets() -> None:
    tests = {
        name: [example(f"{name}{n}", label, source=name) for n in range(10)]
        for name, label in (("a", "unsafe"), ("b", "unsafe"), ("c", "safe"))
    }
    found = cases_of(tests, most=6)
    sources = [of.source for of in found.examples]
    assert [sources.count(name) for name in "abc"] == [3, 3, 6]
    assert found.role.tolist() == ["unsafe"] * 6 + ["ordinary"] * 6


def test_prompts_of_one_label_are_refused() -> None:
    with pytest.raises(DataError, match="compared on unsafe and safe ones"):
        cases_of({"a": [example("1", "unsafe")]}, most=3)


def test_rates_and_changes_of_an_arm_are_those_of_its_replies() -> None:
    roles = ["unsafe"] * 4 + ["ordinary"] * 4
    base = outcomes(["complied"] * 4 + ["complied"] * 4)
    always = outcomes(["refused"] * 4 + ["refused", "complied", "unclear", "complied"])
    gate = np.array([True, True, False, False] + [True] * 4)
    arm = Arm("gated", base.where(gate, always), gate)
    unsafe, ordinary = arm_rows("some", arm, base, cases(roles))
    assert (unsafe["switched_on"], unsafe["complied"], unsafe["refused"]) == (0.5, 0.5, 0.5)
    assert (unsafe["complied_change"], unsafe["refused_change"]) == (-0.5, 0.5)
    assert (ordinary["refused"], ordinary["unclear"], ordinary["disagree"]) == (0.25, 0.25, 0.0)


def test_a_paired_change_has_an_interval_of_the_differences() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(400) < 0.5
    after = before & (generator.random(400) < 0.5)
    change, (low, high) = paired_change(after, before, np.arange(400))
    difference = after.astype(float) - before
    error = 1.96 * difference.std() / np.sqrt(400)
    assert change == pytest.approx(difference.mean())
    assert (low, high) == pytest.approx((change - error, change + error), abs=0.01)


def test_a_front_runs_from_base_to_always_and_the_gate_lies_on_it() -> None:
    roles = ["unsafe"] * 4 + ["look_alike"] * 4
    base = outcomes(["complied"] * 8)
    always = outcomes(["refused"] * 8)
    margins = np.array([3.0, 2.0, 1.0, -1.0, 0.5, -2.0, -3.0, -4.0])
    compared = Comparison("some", base, always, margins, cases(roles))
    front = compared.front()
    points = list(zip(front.x, front.y, strict=True))
    assert points[0] == (0.0, 1.0)
    assert points[-1] == (1.0, 0.0)
    assert (0.25, 0.25) in points
    assert compared.rates(margins >= 0) == (0.25, 0.25)
    assert "recall 0.750, look-alikes flagged 0.250" in compared.finding()
    assert compared.finding().count("not reached") == 2  # by each labeller, strictly
    differing = replace(always, second=np.array(["complied"] * 8))
    found = replace(compared, always=differing).finding()
    assert "By the second labeller complied on unsafe prompts 1.000 -> 1.000" in found
    assert found.count("not reached") == 3
    assert "flags 0.750 of unsafe prompts, 0.000 of look_alike prompts; " in compared.finding()
    assert "look-alikes refused there: 0.000." in compared.finding()


def test_exactly_a_third_is_at_most_a_third() -> None:
    base = outcomes([*["complied"] * 63, *["refused"] * 87, "complied"])
    always = outcomes(["refused"] * 151)
    margins = np.array([*[1.0] * 42, *[-1.0] * 21, *[1.0] * 87, -1.0])
    roles = [*["unsafe"] * 150, "look_alike"]
    compared = Comparison("some", base, always, margins, cases(roles))
    assert compared.rates(margins >= 0) == (0.14, 0.0)
    assert "not reached" not in compared.finding()


def test_a_responder_that_complies_is_never_safer() -> None:
    base = outcomes(["complied"] * 2)
    margins = np.array([1.0, -1.0])
    compared = Comparison("some", base, base, margins, cases(["unsafe", "look_alike"]))
    assert "No threshold of the gate leaves a third." in compared.finding()


def test_collapsed_replies_are_neither_refused_nor_complied() -> None:
    chats = [Chat.from_text("Tell me more.")] * 2
    replies = [KeptReply("no no no no " * 20), KeptReply("I'm sorry, but I can't help with that.")]
    found = Labelling(("refusal_match", "reply_classifier")).label(chats, replies)
    assert found.outcome.tolist() == ["unclear", "refused"]
    assert found.collapsed.tolist() == [True, False]
    assert np.isnan(found.perplexity).all()


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    engine = FakeEngine()
    return Answers(engine, marker_detector(engine), 6, lambda news: None, tmp_path)


def test_replies_are_drawn_once(answers: Answers) -> None:
    chats = [Chat.from_text(SAFE), Chat.from_text(UNSAFE)]
    engine = answers.engine
    assert isinstance(engine, FakeEngine)
    base, always = answers.base(chats), answers.always("fixed_reply:No.", chats)
    before = engine.num_prefills
    assert (answers.base(chats), answers.always("fixed_reply:No.", chats)) == (base, always)
    assert engine.num_prefills == before
    assert [reply.text for reply in base] == [
        reply.text for reply in plain_replies(engine, chats, answers.sampling)
    ]
    assert [reply.text for reply in always] == ["No.", "No."]


def test_another_responder_or_length_has_replies_of_its_own(answers: Answers) -> None:
    chats = [Chat.from_text(UNSAFE)]
    assert answers.always("fixed_reply:No.", chats) != answers.always("fixed_reply:Never.", chats)
    longer = replace(answers, max_tokens=9).base(chats)
    assert len(longer[0].token_ids) > len(answers.base(chats)[0].token_ids)


def test_what_ignores_verdicts_is_not_drawn_again_for_another_gate(answers: Answers) -> None:
    chats = [Chat.from_text(UNSAFE)]
    kept = answers.always("fixed_reply:No.", chats)
    engine = answers.engine
    assert isinstance(engine, FakeEngine)
    before = engine.num_prefills
    stricter = replace(answers, detector=replace(answers.detector, threshold=-9.0))
    assert stricter.always("fixed_reply:No.", chats) == kept
    assert engine.num_prefills == before


def test_what_hears_verdicts_is_drawn_again_for_another_gate(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedReply, "ignores_verdicts", False)
    chats = [Chat.from_text(UNSAFE)]
    answers.always("fixed_reply:No.", chats)
    engine = answers.engine
    assert isinstance(engine, FakeEngine)
    before = engine.num_prefills
    stricter = replace(answers, detector=replace(answers.detector, threshold=-9.0))
    stricter.always("fixed_reply:No.", chats)
    assert engine.num_prefills > before


def test_margins_are_scores_over_the_threshold(answers: Answers) -> None:
    margins: Array = answers.margins([Chat.from_text(SAFE), Chat.from_text(UNSAFE)])
    assert margins[0] < 0 <= margins[1]


def test_prompts_that_pass_are_compared_one_at_a_time(answers: Answers) -> None:
    alone = answers.alone("fixed_reply", [Chat.from_text(SAFE), Chat.from_text(UNSAFE)])
    assert (alone.num_passed, alone.num_identical) == (1, 1)
    assert alone.base_first_token_s > 0


@pytest.mark.parametrize("responders", [(), ("fixed_reply", "fixed_reply")])
def test_responders_are_named_once(responders: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="each once"):
        Responders(responders=responders)
