"""What robustness is tested against: other texts around and in a prompt, which keep its label.

A transformation takes a chat of one user turn and returns another chat. Truncation may cut away
what makes a prompt unsafe; its label stays all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np

from demur.core.types import Chat
from demur.studies._edits import (
    Edit,
    Place,
    insertions,
    padded,
    past_tense,
    random_case,
    synonyms,
    typos,
)
from demur.studies._texts import filled, study_texts

WORDS_A_TOKEN = 0.75
"""Of English text, roughly."""

Change = Callable[[Chat, np.random.Generator], Chat]


@dataclass(frozen=True)
class Transformation:
    """A change of chats, by name."""

    name: str
    family: str
    """Of like changes."""
    change: Change
    num_tokens: int = 0
    """Of padding."""
    place: Place | None = None
    """Of the prompt in the padding."""


def short_transformations() -> tuple[Transformation, ...]:
    """Return the changes that add little or nothing to a prompt."""
    texts = study_texts()
    return (
        *(
            Transformation(f"system prompt {number}", "system prompt", _with_system(system))
            for number, system in enumerate(texts.system_prompts, start=1)
        ),
        *(_edited(name, "white space", edit) for name, edit in _WHITE_SPACE.items()),
        *(_edited(name, "case", edit) for name, edit in _CASE.items()),
        *(_edited(name, "wording", edit) for name, edit in _WORDING.items()),
        *(
            _edited(f"wrapper: {name}", "wrapper", partial(_fill, template))
            for name, template in texts.wrappers.items()
        ),
        *(_edited(name, "truncation", edit) for name, edit in _TRUNCATION.items()),
    )


def paddings(lengths: Sequence[int]) -> tuple[Transformation, ...]:
    """Return paddings of some lengths, in tokens, with the prompt at each place in them."""
    return tuple(
        Transformation(
            f"padding of {length} tokens, prompt at the {place}",
            "padding",
            _of_text(partial(padded, num_words=round(length * WORDS_A_TOKEN), place=place)),
            length,
            place,
        )
        for length in lengths
        for place in get_args(Place)
    )


def _edited(name: str, family: str, edit: Edit) -> Transformation:
    return Transformation(name, family, _of_text(edit))


def _of_text(edit: Edit) -> Change:
    def change(chat: Chat, generator: np.random.Generator) -> Chat:
        return Chat.from_text(edit(chat.last_user_text, generator))

    return change


def _with_system(system: str) -> Change:
    def change(chat: Chat, generator: np.random.Generator) -> Chat:
        return Chat.from_text(chat.last_user_text, system=system)

    return change


def _fill(template: str, text: str, generator: np.random.Generator) -> str:
    return filled(template, text)


def _lines(text: str, generator: np.random.Generator) -> str:
    """Break the line at a third of the spaces, and double some of the others."""
    between = [" ", "\n", "  "]
    words = text.split()
    return "".join(word + between[int(generator.integers(3))] for word in words[:-1]) + words[-1]


def _first_words(text: str, generator: np.random.Generator, *, share: float) -> str:
    words = text.split()
    return " ".join(words[: max(1, round(share * len(words)))])


def _last_words(text: str, generator: np.random.Generator, *, share: float) -> str:
    words = text.split()
    return " ".join(words[-max(1, round(share * len(words))) :])


_WHITE_SPACE: dict[str, Edit] = {
    "blank lines before and after": lambda text, _: f"\n\n\n{text}\n\n\n",
    "indented": lambda text, _: f"        {text}",
    "line breaks and double spaces": _lines,
}
_CASE: dict[str, Edit] = {
    "lower case": lambda text, _: text.lower(),
    "upper case": lambda text, _: text.upper(),
    "random case": random_case,
}
_WORDING: dict[str, Edit] = {
    "typos": typos,
    "synonyms": synonyms,
    "insertions": insertions,
    "past tense": past_tense,
    "no punctuation": lambda text, _: (
        "".join(c for c in text if c.isalnum() or c.isspace()) or text
    ),
}
_TRUNCATION: dict[str, Edit] = {
    "first three quarters": partial(_first_words, share=0.75),
    "first half": partial(_first_words, share=0.5),
    "last half": partial(_last_words, share=0.5),
}
