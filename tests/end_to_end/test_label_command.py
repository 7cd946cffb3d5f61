"""`demur label`: the model answers prompts, and each line says whether it complied."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from demur.core.outcomes import Answered, Judgement, Outcome
from demur.core.types import Sampling
from demur.datasets import jsonl
from demur.engines.transformers import TransformersEngine
from demur.guard.exchange import plain_replies
from demur.scorers.agreement import Agreement
from tests.model_folder import (
    UNSCORED,
    CommandLine,
    Workplace,
    assert_one_line,
    read_lines,
    write_lines,
)

LINES: list[dict[str, object]] = [
    {"id": "a", "text": "mill zero", "label": "unsafe", "more": [1, 2], "complied": True},
    {"text": "mill one", "label": "safe", "system": "Be brief."},
    {"id": "c", "text": "mill two", "label": "unsafe", "group": "g"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl", LINES)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Answered]:
    """Judge by the number in the prompt, and return what was judged."""
    seen: list[Answered] = []
    outcomes: dict[str, Outcome] = {"zero": "refused", "one": "complied", "two": "unclear"}

    def judge(_self: Agreement, answers: Sequence[Answered]) -> list[Judgement]:
        seen.extend(answers)
        return [Judgement(outcomes[of.chat.last_user_text.split()[-1]]) for of in answers]

    monkeypatch.setattr(Agreement, "judge", judge)
    return seen


def test_each_line_is_taken_over_with_the_outcome_of_the_reply(
    demur: CommandLine, workplace: Workplace, data: Path, judged: list[Answered]
) -> None:
    out = data.with_name("out.jsonl")
    done = demur(
        "label", "--data", data, "--out", out, *workplace.model, "--max-tokens", 5, "--batch", 1
    )
    assert done.exit_code == 0, done.stderr
    assert "1 complied with, 1 refused, 1 unclear" in done.error
    assert read_lines(out) == [
        {**LINES[0], "complied": False},
        {"id": "2", **LINES[1], "complied": True},
        LINES[2],
    ]
    assert [example.complied for example in jsonl.load(out)] == [False, True, None]


def test_what_is_judged_is_the_models_own_greedy_reply(
    demur: CommandLine, workplace: Workplace, data: Path, judged: list[Answered]
) -> None:
    out = data.with_name("out.jsonl")
    demur("label", "--data", data, "--out", out, *workplace.model, "--max-tokens", 5, "--batch", 1)
    engine = TransformersEngine.load(workplace.model_path, dtype="float32")
    replies = plain_replies(engine, [of.chat for of in judged], Sampling(max_tokens=5))
    assert [answer.reply for answer in judged] == [reply.text for reply in replies]
    assert [answer.chat.messages[0].content for answer in judged] == [
        "mill zero",
        "Be brief.",
        "mill two",
    ]


def test_an_interrupted_run_goes_on_where_it_stopped(
    demur: CommandLine,
    workplace: Workplace,
    data: Path,
    judged: list[Answered],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = data.with_name("out.jsonl")
    command = ("label", "--data", data, "--out", out, *workplace.model, "--max-tokens", 5)
    judge = Agreement.judge

    def interrupted(self: Agreement, answers: Sequence[Answered]) -> list[Judgement]:
        if "two" in answers[0].chat.last_user_text:
            raise KeyboardInterrupt
        return judge(self, answers)

    with monkeypatch.context() as patch:
        patch.setattr(Agreement, "judge", interrupted)
        assert demur(*command, "--batch", 1).exit_code == 130
    assert not out.exists()
    judged.clear()
    done = demur(*command, "--batch", 1)
    assert "2 of 3 rows are done already" in done.error
    assert len(judged) == 1
    assert [line.get("complied") for line in read_lines(out)] == [False, True, None]


def test_a_prompt_without_a_reply_is_an_error_of_its_line(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, judged: list[Answered]
) -> None:
    lines = [{"text": "x" * 600}, {"text": " "}, {"text": "mill one"}]
    data = write_lines(tmp_path / "data.jsonl", lines)
    out = tmp_path / "out.jsonl"
    done = demur("label", "--data", data, "--out", out, *workplace.model, "--max-tokens", 3)
    assert done.exit_code == UNSCORED
    long, empty, fine = read_lines(out)
    assert "tokens" in long["error"]
    assert "empty" in empty["error"]
    assert fine["complied"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scorer", "nothing"), "there is no scorer 'nothing'"),
        (("--scorer", "perplexity"), "Perplexity measures something else than the outcome"),
        (("--scorer", "agreement:no_such=1"), "has no field 'no_such'"),
        (("--data", "nowhere.jsonl"), "there is no file nowhere.jsonl"),
    ],
)
def test_what_cannot_be_labelled_is_refused_before_a_model_is_loaded(
    demur: CommandLine, data: Path, options: tuple[str, str], message: str
) -> None:
    out = data.with_name("out.jsonl")
    outcome = demur("label", "--data", data, "--out", out, "--model", "none", *options)
    assert_one_line(outcome, message)
    assert not out.exists()


def test_no_reply_stands_in_the_output(
    demur: CommandLine, workplace: Workplace, data: Path, judged: list[Answered]
) -> None:
    out = data.with_name("out.jsonl")
    demur("label", "--data", data, "--out", out, *workplace.model, "--max-tokens", 5)
    known = {"id", "text", "label", "more", "complied", "system", "group"}
    assert all(set(json.loads(line)) <= known for line in out.read_bytes().splitlines())
