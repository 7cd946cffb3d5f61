"""What the DeRTa benchmark measures with: continuations, the word of refusal, and its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import derta_late
from benchmarks.derta import MAX_TOKENS, trainers
from benchmarks.derta_late import continued, kept, stopped, word_log_probs
from benchmarks.derta_report import report
from benchmarks.derta_rows import Begun
from demur.core.outcomes import Answered, Judgement
from demur.core.types import Chat, Prompt
from tests.interventions import plain_greedy
from tests.tiny import tiny

PROMPT = (256, 84, 82, 68, 81, 198, 71, 72)


def test_continuations_in_a_padded_batch_are_those_of_each_row_alone() -> None:
    loaded = tiny()
    given = [PROMPT, PROMPT[:3], (*PROMPT, 64, 65)]
    found = continued(loaded, given, 5)
    for ids, continuation in zip(given, found, strict=True):
        alone = plain_greedy(loaded, Prompt(Chat.from_text("hi"), ids, ()), 5)
        ends = [place for place, token in enumerate(alone) if token in loaded.end_token_ids]
        assert continuation == tuple(alone[: ends[0]] if ends else alone)


def test_a_word_is_asked_in_place_of_each_token_but_the_first() -> None:
    loaded = tiny()
    reply = (64, 65, 66, 67)
    (found,) = word_log_probs(loaded, [(PROMPT, reply)], 220, most=8)
    logits = loaded.model(input_ids=torch.tensor([[*PROMPT, *reply]])).logits[0].log_softmax(-1)
    expected = logits[len(PROMPT) : len(PROMPT) + 3, 220]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


class Said:
    """A scorer that tells outcomes by a rule of the test."""

    def __init__(self, outcome: str, *, where: str = "") -> None:
        self._outcome, self._where = outcome, where

    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        return [
            Judgement(self._outcome if self._where in str(of.chat) else "unclear")  # type: ignore[arg-type]
            for of in answers
        ]


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [("refused", "unclear", True), ("refused", "complied", False), ("complied", "unclear", False)],
)
def test_a_reply_is_stopped_if_it_is_refused_and_nothing_complies_afterwards(
    first: str, then: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derta_late, "RefusalMatch", lambda **_: Said(first, where="one"))
    monkeypatch.setattr(derta_late, "ReplyClassifier", lambda: Said(then))
    begun = [
        Begun(Chat.from_text(text), PROMPT, tuple(range(60, 100)), text) for text in ("one", "two")
    ]
    loaded = tiny()
    found = stopped(loaded, begun, 8, lambda given, number: continued(loaded, given, number))
    assert found.tolist() == [expected, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("here is what you need:\n\n1. Sorry. I can't help with this request", True),
        ("of them. Take one. Heat it. Wait. Sorry. I'm unable to help with", True),
        ("here is what you need:\n\n1. **Flour**: a pound of it\n2. Salt", False),
    ],
)
def test_a_refusal_in_the_middle_of_a_text_is_told(text: str, expected: bool) -> None:
    assert derta_late.refused([Chat.from_text("how?")], [text]).tolist() == [expected]


def test_continuations_are_drawn_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path))
    loaded, given = tiny(), [(*PROMPT, 64, 65), PROMPT[:3], PROMPT]
    expected = [continued(loaded, [ids], 5)[0] for ids in given]
    assert kept(loaded, "")(given, 5) == expected
    monkeypatch.setattr(derta_late, "continued", lambda *_: pytest.fail("drawn again"))
    assert kept(loaded, "")(given[::-1], 5) == expected[::-1]
    for adapter, num_tokens in (("a", 5), ("", 6)):
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            kept(loaded, adapter)(given, num_tokens)


def test_all_arms_learn_the_same_lengths_and_steps() -> None:
    made = trainers(7, ablations=True)
    assert list(made) == ["sft", "derta", "derta, prefix rows", "derta, transition rows"]
    for trainer in made.values():
        fields = trainer.hyper_parameters()
        assert (fields["steps"], fields["max_reply_tokens"]) == (7, MAX_TOKENS - 1)


def test_the_report_names_every_arm_and_number() -> None:
    rate = {"share": 0.5, "interval": (0.4, 0.6)}
    arm = {
        "stopped": {8: rate}, "word_in_harmful": -7.5, "word_in_benign": -12.0,
        "word_share_in_benign": 0.001,
    }  # fmt: skip
    row = {
        "arm": "derta", "role": "look_alike", "prompts": 150, "collapsed": 0.02,
        **{
            f"{word}{part}": value
            for word in ("complied", "refused")
            for part, value in (("", 0.25), ("_change", 0.1), ("_change_low", 0.05),
                                ("_change_high", 0.15))
        },
    }  # fmt: skip
    results: dict[str, Any] = {
        "machine": {"processor": "p", "cores": 2, "versions": {"torch": "t"}},
        "model": {"name": "m", "dtype": "bfloat16"}, "steps": 80, "seconds": 60.0,
        "share": 1.0, "replies": 0.5,
        "trained_on": {"prompts": 400},
        "late": {
            "rows": 200, "questions": 150, "arms": {"sft": arm, "derta": arm},
            "over_sft": {"derta": {8: {"change": 0.3, "interval": (0.2, 0.4)}}},
        },
        "arms": [row],
        "attacks": [
            {"arm": "derta", "family": "code_attack", "prompts": 70, "not_refused": 0.9,
             "interval": (0.8, 0.95), "collapsed": 0.0}
        ],
    }  # fmt: skip
    text = report(results)
    for part in ("| derta | 50.0% (40.0% to 60.0%) | -7.50 |", "+30.0% (20.0% to 40.0%)",
                 "150 look-alike", "| derta | code attack | 70 | 90.0%"):  # fmt: skip
        assert part in text
