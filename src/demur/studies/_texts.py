"""Texts that studies put around, before, after and in place of words of prompts.

They stand in `_texts.toml`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_suffix(".toml")
PLACE = "{text}"
"""Stands for the prompt in a template."""


@dataclass(frozen=True)
class StudyTexts:
    """All texts, by what they are for."""

    system_prompts: tuple[str, ...]
    wrappers: Mapping[str, str]
    """Templates of everyday requests, by name."""
    framings: Mapping[str, str]
    """Templates that an attacker would use, by name."""
    synonyms: Mapping[str, tuple[str, ...]]
    """What may stand in place of a word, which is lower case."""
    openings: tuple[str, ...]
    fillers: tuple[str, ...]
    endings: tuple[str, ...]
    passages: tuple[str, ...]
    """Of some 60 harmless words each, for padding."""


@cache
def study_texts() -> StudyTexts:
    """Return the texts."""
    tables = tomllib.loads(PATH.read_text(encoding="utf-8"))
    insertions = {name: tuple(texts) for name, texts in tables["insertions"].items()}
    return StudyTexts(
        system_prompts=tuple(tables["system_prompts"]),
        wrappers=tables["wrappers"],
        framings=tables["framings"],
        synonyms={word: tuple(others) for word, others in tables["synonyms"].items()},
        passages=tuple(tables["padding"]["passages"]),
        **insertions,
    )


def filled(template: str, text: str) -> str:
    """Return a template with the prompt in its place.

    >>> filled("Translate: {text}", "Good day")
    'Translate: Good day'
    """
    return template.replace(PLACE, text)
