"""What a responder costs where nothing is wrong: right answers by likelihood, and perplexity.

A small model's drawn answers to school mathematics and exams are wrong nearly always, so that a
count of them stands still. Here nothing is drawn: an answer counts as chosen if the model, under
the responder, finds it likeliest of a few. Exams (`mmlu_500`) have four letters; school mathematics
(`gsm8k_test`) the right number and three others of as many digits, which are answers to other
questions. Beside it stands how likely the right answer is, as a perplexity, which moves before the
choice does. Short true answers (`truthfulqa`) have a perplexity alone.

The responder is on for every question, and sees no verdict; with a detector it is measured a second
time on the questions that it flags.

    DEMUR_DATA=FOLDER python -m benchmarks.utility [--model M] [--responders LINE ...]
        [--detector D] [--share 0.2] [--json]
"""

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arms import tell
from benchmarks.machine import describe_machine
from benchmarks.results_files import keep
from benchmarks.utility_report import report
from demur.core.errors import DataError
from demur.core.protocols import Responder
from demur.core.readings import Array
from demur.core.types import Chat
from demur.datasets.demur_data import DemurData
from demur.datasets.rows import read_objects
from demur.engines.transformers import TransformersEngine
from demur.engines.transformers.forcing import Forcing
from demur.guard.loading import load_detector
from demur.guard.responding import load_responder
from demur.metrics.wilson_interval import wilson_interval
from demur.studies._answers import Answers
from demur.studies._arms import paired_change
from demur.studies._study import Cell, Row

NUM_OTHERS = 3
"""Wrong numbers beside the right one."""
BASE = "base"
_OPTION = re.compile(r"^-\(([A-Z])\)", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """A question with the answers to choose from; a single one is the right one."""

    of_set: str
    chat: Chat
    options: tuple[str, ...]
    right: int
    """Which of the options."""


def exam_questions(data: DemurData) -> list[Question]:
    """Return the questions of `mmlu_500`, whose answers are letters."""
    found = []
    for row in _rows(data, "mmlu_500"):
        letters = tuple(_OPTION.findall(row["text"]))
        chat = Chat.from_text(f"{row['text']}\nAnswer with the letter alone.")
        found.append(Question("mmlu_500", chat, letters, letters.index(row["meta"]["answer"])))
    return found


def sums(data: DemurData, *, seed: int = 0) -> list[Question]:
    """Return the questions of `gsm8k_test` whose answers `mgsm`, their translation, holds.

    Args:
        data: The collection.
        seed: Of the wrong answers and of the place of the right one.

    Raises:
        DataError: Two translations have different answers.
    """
    answers: dict[int, str] = {}
    for row in _rows(data, "mgsm"):
        number, answer = int(row["group"].split(":")[1]), row["meta"]["answer"].replace(",", "")
        if answers.setdefault(number, answer) != answer:
            raise DataError(f"mgsm has two answers to question {number}: expected one")
    generator = np.random.default_rng(seed)
    pool = sorted(set(answers.values()))
    texts = [row["text"] for row in _rows(data, "gsm8k_test")]
    found = []
    for number, answer in sorted(answers.items()):
        options = [*other_numbers(answer, pool, generator), answer]
        options = [options[place] for place in generator.permutation(len(options))]
        chat = Chat.from_text(f"{texts[number]}\nAnswer with the number alone.")
        found.append(Question("gsm8k_test", chat, tuple(options), options.index(answer)))
    return found


def other_numbers(answer: str, pool: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Return wrong answers that look like a right one: of a pool, and as many digits.

    Where the pool has too few, numbers right beside the answer fill up.
    """
    alike = [other for other in pool if len(other) == len(answer) and other != answer]
    drawn = [alike[row] for row in generator.permutation(len(alike))[:NUM_OTHERS]]
    step = 1
    while len(drawn) < NUM_OTHERS:
        for beside in (str(int(answer) + step), str(int(answer) - step)):
            if len(beside) == len(answer) and beside not in drawn and len(drawn) < NUM_OTHERS:
                drawn.append(beside)
        step += 1
    return drawn


def short_answers(data: DemurData) -> list[Question]:
    """Return the questions of `truthfulqa`, each with its best answer alone."""
    return [
        Question("truthfulqa", Chat.from_text(row["text"]), (row["meta"]["best_answer"],), 0)
        for row in _rows(data, "truthfulqa")
    ]


def _rows(data: DemurData, name: str) -> list[dict[str, Any]]:
    return [fields for _, fields in read_objects(data.folder / data.sets[name].file)]


SETS: Mapping[str, Callable[[DemurData], list[Question]]] = {
    "mmlu_500": exam_questions,
    "gsm8k_test": sums,
    "truthfulqa": short_answers,
}


@dataclass(frozen=True)
class Measured:
    """What a model makes of questions."""

    is_right: Array
    """Whether the likeliest option is the right one, [question]."""
    nats: Array
    """The mean of minus the log-probability of the right option's tokens, [question]."""

    def where(self, is_changed: Array, other: "Measured") -> "Measured":
        """Return this, with what another one has of some questions."""
        return Measured(
            np.where(is_changed, other.is_right, self.is_right),
            np.where(is_changed, other.nats, self.nats),
        )


def measured(
    engine: TransformersEngine, questions: Sequence[Question], responder: Responder | None
) -> Measured:
    """Read each question once, and compare its options.

    Args:
        engine: Runs the model.
        questions: One or more.
        responder: On for every question; None is the model by itself.

    Raises:
        CapabilityError: The responder does not let the model draw tokens by their likelihood.
    """
    forcing = Forcing(engine)
    is_right, nats = [], []
    for question in questions:
        intervention = None if responder is None else responder.respond(question.chat, ())
        prompt = engine.render(question.chat)
        values = forcing.log_probs(prompt, question.options, intervention=intervention)
        totals = [float(of.sum()) for of in values]
        is_right.append(int(np.argmax(totals)) == question.right)
        nats.append(-float(values[question.right].mean()))
    return Measured(np.array(is_right), np.array(nats))


def row_of(arm: str, questions: Sequence[Question], found: Measured, base: Measured) -> Row:
    """Return what a set's row says of an arm, with changes against the model by itself.

    Args:
        arm: Its name.
        questions: Of one set.
        found: Of the arm.
        base: Of the model by itself, on the same questions.
    """
    group = np.arange(len(questions))
    surprise, surprise_interval = paired_change(found.nats, base.nats, group)
    row: dict[str, Cell] = {
        "set": questions[0].of_set,
        "arm": arm,
        "questions": len(questions),
        "perplexity": float(np.exp(found.nats.mean())),
        "perplexity_ratio": float(np.exp(surprise)),
        "perplexity_ratio_low": float(np.exp(surprise_interval[0])),
        "perplexity_ratio_high": float(np.exp(surprise_interval[1])),
    }
    if all(len(question.options) == 1 for question in questions):
        return row
    low, high = wilson_interval(found.is_right, group) or (None, None)
    change, interval = paired_change(found.is_right, base.is_right, group)
    return row | {
        "right": float(found.is_right.mean()),
        "right_low": low,
        "right_high": high,
        "chance": float(np.mean([1 / len(question.options) for question in questions])),
        "right_change": change,
        "right_change_low": interval[0],
        "right_change_high": interval[1],
    }


def rows_of(
    engine: TransformersEngine,
    questions: Sequence[Question],
    responders: Sequence[str],
    flagged: Array | None,
) -> list[Row]:
    """Return a row for the model by itself, and one or two for each responder.

    Args:
        engine: Runs the model.
        questions: Of one set.
        responders: Lines, as `load_responder` takes them.
        flagged: Which questions a detector flags, [question]; None without one.
    """
    base = measured(engine, questions, None)
    rows = [row_of(BASE, questions, base, base)]
    for line in responders:
        always = measured(engine, questions, load_responder(line, engine.model_id))
        rows.append(row_of(f"{line}, always", questions, always, base))
        if flagged is not None:
            gated = base.where(flagged, always)
            rows.append(row_of(f"{line}, gated", questions, gated, base))
    return rows


def chosen(questions: Sequence[Question], share: float, *, seed: int = 0) -> list[Question]:
    """Return a share of questions, one at least, in order."""
    order = np.random.default_rng(seed).permutation(len(questions))
    kept = sorted(order[: max(1, round(share * len(questions)))].tolist())
    return [questions[place] for place in kept]


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--responders", nargs="*", default=[], help="lines, such as steering:DIR@1")
    parser.add_argument("--detector", help="gates the responders: a folder, or pretrained")
    parser.add_argument("--share", type=float, default=1.0, help="of the questions")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    engine, data = TransformersEngine.load(options.model), DemurData()
    rows: list[Row] = []
    for name, load in SETS.items():
        questions = chosen(load(data), options.share)
        tell(f"{name}: {len(questions)} questions")
        flagged = None
        if options.detector:
            answers = Answers(engine, load_detector(options.detector, engine), 0, tell)
            flagged = answers.margins([question.chat for question in questions]) >= 0
        rows += rows_of(engine, questions, options.responders, flagged)
    result = {
        "model": engine.model_id.name,
        "machine": describe_machine(),
        "seconds": time.perf_counter() - started,
        "share": options.share,
        "detector": options.detector,
        "rows": rows,
    }
    keep("utility", result, report(result), prints_json=options.json)


if __name__ == "__main__":
    main()
