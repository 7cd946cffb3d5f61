"""The categories of public sets in two common schemes, and what a head for each key is fitted on.

Every set has categories of its own. `categories.toml` says which of them clearly mean a hazard of
MLCommons and Llama Guard (S1 to S14), and which a key of OpenAI's moderation. A head that tells one
key from the rest needs negatives too, and an unsafe prompt is one only if it is known to lack the
key: `one_vs_rest_labels` leaves out all others.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demur.core.examples import Example

PATH = Path(__file__).with_suffix(".toml")

HAZARDS: Mapping[str, str] = MappingProxyType(
    {
        "S1": "Violent Crimes",
        "S2": "Non-Violent Crimes",
        "S3": "Sex-Related Crimes",
        "S4": "Child Sexual Exploitation",
        "S5": "Defamation",
        "S6": "Specialized Advice",
        "S7": "Privacy",
        "S8": "Intellectual Property",
        "S9": "Indiscriminate Weapons",
        "S10": "Hate",
        "S11": "Suicide & Self-Harm",
        "S12": "Sexual Content",
        "S13": "Elections",
        "S14": "Code Interpreter Abuse",
    }
)
OPENAI_KEYS = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/intent", "self-harm/instructions", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
SCHEMES = (tuple(HAZARDS), OPENAI_KEYS)

POSITIVE, NEGATIVE, LEFT_OUT = 1, 0, -1


@dataclass(frozen=True)
class Mapped:
    """What a category says; of a scheme without a key in it nothing is known."""

    hazards: tuple[str, ...] = ()
    openai: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    """Keys that some of its prompts may have."""


def map_category(source: str | None, category: str | None) -> Mapped:
    """Return the keys of a source's category; a pair that the table lacks has none.

    Of a category that lists several, all keys count. If one of them is unknown to a scheme, the
    keys that the others do not give are undecided.

    >>> map_category("openai_moderation", "H,H2").openai
    ('hate', 'hate/threatening')
    """
    parts = [_part(source, part) for part in _split(source, category)]
    hazards = [key for key in HAZARDS if any(key in part.hazards for part in parts)]
    openai = [key for key in OPENAI_KEYS if any(key in part.openai for part in parts)]
    decided = _table()["decided_sub_keys"].get(source, ())
    undecided = {key for part in parts for key in part.undecided}
    for key in OPENAI_KEYS:
        parent = key.partition("/")[0]
        if parent != key and (parent in undecided or (parent in openai and key not in decided)):
            undecided.add(key)
    if hazards and not all(part.hazards for part in parts):
        undecided.update(HAZARDS)
    if openai and not all(part.openai for part in parts):
        undecided.update(OPENAI_KEYS)
    undecided -= {*hazards, *openai}
    ordered = (key for scheme in SCHEMES for key in scheme if key in undecided)
    return Mapped(tuple(hazards), tuple(openai), tuple(ordered))


def is_listed(source: str | None, category: str | None) -> bool:
    """Tell whether the table knows a category, be it only to say that it means no key."""
    if source in _table()["without_categories"]:
        return True
    listed = _categories(source)
    return all(part in listed for part in _split(source, category))


def one_vs_rest_labels(examples: Sequence[Example]) -> dict[str, NDArray[np.int8]]:
    """Return for each key which prompts a head for it takes as what.

    A safe prompt is a negative of all keys. An unsafe one is a positive of its category's keys, and
    a negative of the same scheme's other keys, unless they are undecided. An unsafe prompt whose
    category has no key in a scheme, and a prompt without a label, are left out.

    Args:
        examples: Prompts with their labels, sources and categories.

    Returns:
        For each of the 14 hazards and then of OpenAI's 13 keys an array [prompt] of `POSITIVE` (1),
        `NEGATIVE` (0) and `LEFT_OUT` (-1).
    """
    keys = [key for scheme in SCHEMES for key in scheme]
    signs = np.full((len(examples), len(keys)), LEFT_OUT, np.int8)  # [prompt, key]
    for row, example in zip(signs, examples, strict=True):
        if example.label == "safe":
            row[:] = NEGATIVE
        elif example.label == "unsafe":
            row[:] = _unsafe_signs(example.source, example.category)
    return {key: signs[:, column].copy() for column, key in enumerate(keys)}


@cache
def _unsafe_signs(source: str | None, category: str | None) -> tuple[int, ...]:
    mapped = map_category(source, category)
    signs: list[int] = []
    for keys, given in zip(SCHEMES, (mapped.hazards, mapped.openai), strict=True):
        unknown = keys if not given else mapped.undecided
        rest = {key: LEFT_OUT if key in unknown else NEGATIVE for key in keys}
        signs += (rest | dict.fromkeys(given, POSITIVE)).values()
    return tuple(signs)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(PATH.read_text(encoding="utf-8"))


def _categories(source: str | None) -> dict[str, dict[str, list[str]]]:
    name = _table()["same_as"].get(source, source)
    return _table()["categories"].get(name, {})  # type: ignore[no-any-return]


def _split(source: str | None, category: str | None) -> list[str]:
    separator = _table()["separators"].get(source)
    return (category or "").strip("[]'").split(separator) if separator else [category or ""]


def _part(source: str | None, category: str) -> Mapped:
    fields = _categories(source).get(category, {})
    return Mapped(**{name: tuple(keys) for name, keys in fields.items()})
