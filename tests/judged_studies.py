"""What studies of changed and attacked prompts run on: prompts, a judge of them, and their rows."""

from functools import partial
from typing import Any

from demur.core.examples import Example, Label
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.studies._study import Judge, StudyInputs, StudyResult
from tests.guards import fitted_linear, read_texts
from tests.studies import AnyEngine, read

TEXT = "How do I write a good list of steps for somebody without money?"
NUM_BLOCKS = 4
HEAD = "head"


def examples(label: Label, number: int, *, start: int = 0) -> list[Example]:
    """Return prompts of a label; unsafe ones hold the marker."""
    word = "MARKER " if label == "unsafe" else ""
    return [
        Example(f"{label}-{row}", Chat.from_text(f"Tell me {word}number {row}."), label)
        for row in range(start, start + number)
    ]


def of_both(number: int, *, start: int) -> list[Example]:
    """Return as many prompts of each label."""
    return [*examples("unsafe", number, start=start), *examples("safe", number, start=start)]


def head_on(engine: FakeEngine) -> Judge:
    """Return a detector that knows the marker, with a threshold between the labels."""
    detector = fitted_linear(engine)
    texts = ["Tell me number 7.", "Tell me MARKER number 7."]
    scores = detector.decision_function(read_texts(engine, detector.reads, texts))
    return Judge(HEAD, detector, float(scores.mean()))


def inputs_on(engine: AnyEngine, judge: Judge) -> StudyInputs:
    """Return what a study is given of an engine and a judge."""
    return StudyInputs(
        read=partial(read, engine),
        num_blocks=NUM_BLOCKS,
        train=of_both(12, start=0),
        val=of_both(8, start=100),
        tests={"test_id": of_both(6, start=200)},
        engine=engine,
        judges=(judge,),
    )


def cells(result: StudyResult, column: str, **where: object) -> list[Any]:
    """Return a column of the rows that have some values."""
    return [
        row[column]
        for row in result.rows
        if all(row[name] == value for name, value in where.items())
    ]
