"""MMLU-Redux: exam questions of 30 subjects that people checked, as prompts that are all safe.

Only questions of the error type `ok` are kept. The prompt is the question with its answers, one a
line, lettered; the category is the subject.

Paper: Are We Done with MMLU? (Gema et al., 2024), arXiv 2406.04127.

Differs: the evaluation of arXiv 2502.16174 also keeps some questions whose answer was repaired, by
a rule that is not published, so that its 2,744 questions may not be these.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets._hub import (
    Expected,
    Part,
    Prompt,
    Row,
    part_of,
    read_rows,
    text_of,
    to_examples,
)

__all__ = ["load"]

NEEDS = ("datasets",)

NAME = "mmlu_redux"
REPO = "edinburgh-dawg/mmlu-redux"
REVISION = "2ebba46760ad1df575a6b9df42c280b1d5fb3c10"
PARTS = {"test": Part(REPO, REVISION, "test", (), ("question", "choices", "error_type"))}
EXPECTED = {"test": Expected(2_744, unsafe=0)}

SUBJECTS = (
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "formal_logic",
    "global_facts",
    "high_school_chemistry",
    "high_school_geography",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "high_school_us_history",
    "human_aging",
    "logical_fallacies",
    "machine_learning",
    "miscellaneous",
    "philosophy",
    "professional_accounting",
    "professional_law",
    "public_relations",
    "virology",
)


def load(
    source: Path | None = None,
    *,
    split: Literal["test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the questions.

    Args:
        source: A folder with a folder a subject, as on the hub; None is the hub itself.
        split: `test`, the only one.
        check_counts: Refuse another size than the published one, and a folder without all subjects.

    Raises:
        ConfigError: There is no such split or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    rows = [
        {**row, "subject": subject, "number": number}
        for subject in _subjects(source, check_counts=check_counts)
        for number, row in enumerate(read_rows(_part_of_subject(part, subject), source))
    ]
    expected = EXPECTED[split] if check_counts else None
    return to_examples(NAME, split, rows, _prompt, part=part, expected=expected)


def _subjects(source: Path | None, *, check_counts: bool) -> list[str]:
    if source is None:
        return list(SUBJECTS)
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder: expected one that holds a folder a subject")
    found = [subject for subject in SUBJECTS if (source / subject).is_dir()]
    if not found or (check_counts and len(found) < len(SUBJECTS)):
        missing = sorted(set(SUBJECTS) - set(found))
        raise ConfigError(f"{source} holds no folder {', '.join(missing)}: copy all of {REPO}")
    return found


def _part_of_subject(part: Part, subject: str) -> Part:
    return replace(part, config=subject, files=(f"{subject}/data-*", f"{subject}/**/*.parquet"))


def _prompt(row: Row) -> Prompt | None:
    if row["error_type"] != "ok":
        return None
    if not isinstance(row["choices"], list):
        raise DataError(f"choices is {type(row['choices']).__name__}: expected a list of answers")
    question = text_of(row, "question")
    answers = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(row["choices"])]
    return Prompt(
        None if question is None else "\n".join([question, *answers]),
        "safe",
        id=f"{NAME}-test-{row['subject']}-{row['number']}",
        category=row["subject"],
    )
