"""The benchmark of utility: its questions, what it measures of a model, and its page."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.utility import (
    Measured,
    Question,
    chosen,
    exam_questions,
    measured,
    other_numbers,
    row_of,
    rows_of,
    short_answers,
    sums,
)
from benchmarks.utility_report import report
from demur.core.errors import DataError
from demur.core.interventions import Intervention, SwapHead
from demur.core.protocols import Responder
from demur.core.results import Verdict
from demur.core.types import Chat
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from tests.interventions import next_logits, stored
from tests.model_folder import write_lines
from tests.tiny import tiny

MODEL = tiny("llama")
LETTERS = ("A", "B", "C", "D")


def questions_of(rights: Sequence[int]) -> list[Question]:
    return [
        Question("mmlu_500", Chat.from_text(f"Question {number}?"), LETTERS, right)
        for number, right in enumerate(rights)
    ]


@dataclass(frozen=True)
class Through(Responder):
    """A responder that always does the same."""

    intervention: Intervention

    @property
    def needs(self) -> frozenset[type]:
        return frozenset({type(self.intervention)})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> Intervention:
        return self.intervention


def collection(folder: Path) -> DemurData:
    """Write a collection with two questions a set."""
    exam = "Which one?\n-options\n-(A) this\n-(B) that\n-(C) none"
    sets: dict[str, list[dict[str, object]]] = {
        "mmlu_500": [{"text": exam, "meta": {"answer": answer}} for answer in "CA"],
        "gsm8k_test": [{"text": "One and one?"}, {"text": "A thousand and two?"}],
        "mgsm": [
            {"text": text, "group": f"mgsm:{number}", "meta": {"answer": answer}}
            for number, text, answer in ((0, "?", "2"), (1, "??", "1,002"), (0, "???", "2"))
        ],
        "truthfulqa": [{"text": "Is it?", "meta": {"best_answer": "It is not."}}] * 2,
    }
    entries = []
    for name, rows in sets.items():
        write_lines(folder / f"{name}.jsonl.gz", rows)
        entry = {"name": name, "file": f"{name}.jsonl.gz", "kind": "utility", "repo": "r"}
        entries.append({**entry, "licence": "MIT", "licence_stated": True, "non_commercial": False})
    (folder / "index.json").write_text(json.dumps({"datasets": entries}))
    return DemurData(folder)


def test_exam_questions_have_their_letters_and_the_right_one(tmp_path: Path) -> None:
    first, second = exam_questions(collection(tmp_path))
    assert (first.options, first.right, second.right) == (("A", "B", "C"), 2, 0)
    assert first.chat.last_user_text.endswith("\nAnswer with the letter alone.")


def test_sums_have_the_translations_answer_beside_three_others(tmp_path: Path) -> None:
    first, second = sums(collection(tmp_path))
    assert first.chat.last_user_text == "One and one?\nAnswer with the number alone."
    assert (first.options[first.right], second.options[second.right]) == ("2", "1002")
    for question in (first, second):
        assert len(set(question.options)) == 4
        assert len({len(option) for option in question.options}) == 1


def test_translations_that_disagree_are_an_error(tmp_path: Path) -> None:
    data = collection(tmp_path)
    rows = [{"text": "?", "group": "mgsm:0", "meta": {"answer": answer}} for answer in "23"]
    write_lines(tmp_path / "mgsm.jsonl.gz", rows)
    with pytest.raises(DataError, match="two answers to question 0"):
        sums(data)


def test_short_answers_have_one_option(tmp_path: Path) -> None:
    assert {question.options for question in short_answers(collection(tmp_path))} == {
        ("It is not.",)
    }


@pytest.mark.parametrize("answer", ["7", "42", "1000000"])
def test_other_numbers_are_three_wrong_ones_of_as_many_digits(answer: str) -> None:
    pool = [str(number) for number in (3, 5, 7, 9, 40, 41, 42, 43, 44, 1000000)]
    found = other_numbers(answer, pool, np.random.default_rng(0))
    assert len(set(found)) == 3
    assert answer not in found
    assert {len(other) for other in found} == {len(answer)}


def test_the_likeliest_letter_is_chosen_and_the_right_one_has_its_surprise() -> None:
    engine, questions = TransformersEngine(MODEL), questions_of([0, 1, 2, 3, 1, 2])
    found = measured(engine, questions, None)
    for place, question in enumerate(questions):
        ids = engine.render(question.chat).token_ids
        log_probs = torch.log_softmax(next_logits(MODEL, list(ids)), -1)
        letters = [MODEL.tokenizer(letter)["input_ids"][0] for letter in LETTERS]
        assert found.is_right[place] == (int(log_probs[letters].argmax()) == question.right)
        expected = -float(log_probs[letters[question.right]])
        assert found.nats[place] == pytest.approx(expected, abs=1e-4)


def test_a_responder_that_always_says_b_is_right_where_b_is(tmp_path: Path) -> None:
    own = MODEL.model.get_output_embeddings().weight.detach().clone()
    letters = [MODEL.tokenizer(letter)["input_ids"][0] for letter in LETTERS]
    chat = questions_of([1])[0].chat
    prompt = TransformersEngine(MODEL).render(chat)
    with torch.inference_mode():
        states = MODEL.parts.body(torch.tensor([list(prompt.token_ids)]), use_cache=False)[0]
    # All other letters get the opposite of what "B" gets of the last state.
    own[letters] = -states[0, -1]
    own[letters[1]] = states[0, -1]
    says_b = Through(SwapHead(stored(tmp_path, "weights", own)))
    questions = [Question("mmlu_500", chat, LETTERS, right) for right in (0, 1, 1, 3)]
    found = measured(TransformersEngine(MODEL), questions, says_b)
    assert found.is_right.tolist() == [False, True, True, False]


def test_a_row_has_changes_against_the_model_by_itself() -> None:
    questions = questions_of([0] * 40)
    base = Measured(np.arange(40) < 20, np.full(40, 1.0))
    found = Measured(np.arange(40) < 10, np.full(40, 1.5))
    row = row_of("worse", questions, found, base)
    assert (row["right"], row["chance"], row["right_change"]) == (0.25, 0.25, -0.25)
    assert float(str(row["right_change_low"])) < -0.25 < float(str(row["right_change_high"])) < 0
    assert row["perplexity"] == pytest.approx(math.exp(1.5))
    assert row["perplexity_ratio"] == pytest.approx(math.exp(0.5))


def test_a_single_option_leaves_nothing_to_choose() -> None:
    question = Question("truthfulqa", Chat.from_text("Is it?"), ("It is not.",), 0)
    found = Measured(np.array([True]), np.array([2.0]))
    assert "right" not in row_of("base", [question], found, found)


def test_behind_a_gate_that_flags_nothing_nothing_changes() -> None:
    questions = questions_of([0, 1, 2])
    engine = TransformersEngine(MODEL)
    lines = ["safety_prompt"]
    base, always, gated = rows_of(engine, questions, lines, np.zeros(3, bool))
    assert gated["arm"] == "safety_prompt, gated"
    assert gated["perplexity"] == base["perplexity"] != always["perplexity"]
    *_, flagged = rows_of(engine, questions, lines, np.ones(3, bool))
    assert flagged["perplexity"] == always["perplexity"]


def test_a_share_of_questions_is_the_same_each_time() -> None:
    questions = questions_of([0] * 20)
    assert chosen(questions, 0.25) == chosen(questions, 0.25)
    assert len(chosen(questions, 0.25)) == 5
    assert chosen(questions, 1.0) == questions
    assert len(chosen(questions, 0.001)) == 1


def test_the_page_has_a_line_for_each_row() -> None:
    questions = questions_of([0] * 8)
    found = Measured(np.arange(8) < 2, np.full(8, 1.0))
    rows = [row_of(arm, questions, found, found) for arm in ("base", "steering:x, gated")]
    page = report(
        {
            "model": "m",
            "machine": {"processor": "p", "cores": 2},
            "seconds": 60.0,
            "share": 1.0,
            "detector": "pretrained",
            "rows": rows,
        }
    )
    assert page.count("| mmlu_500 |") == 2
    assert "25.0%" in page
    assert "only where `pretrained` flags" in page
