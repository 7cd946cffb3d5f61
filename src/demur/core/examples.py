"""One labelled (or unlabelled) prompt of a data set, and what a fit has to know of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from demur.core.errors import DataError
from demur.core.protocols import Targets
from demur.core.readings import Array
from demur.core.types import Chat

Label = Literal["unsafe", "safe"]
LOOK_ALIKE_KINDS = frozenset({"look_alike", "lookalikes", "wrapped_safe"})
LOOK_ALIKE_SETS = frozenset({"xstest", "oktest", "coconot_eval", "coconot_pref"})
"""Sets whose safe prompts sound dangerous."""


@dataclass(frozen=True)
class Example:
    """A chat with what is known of it. Labels: unsafe is 1, safe is 0."""

    id: str
    chat: Chat
    label: Label | None = None
    group: str | None = None
    """Links texts that no split may part; None is a group of its own."""
    source: str | None = None
    category: str | None = None
    kind: str | None = None
    """The sort of prompt, as its set names it: `look_alike`, `jailbreak` and so on."""
    split: str | None = None
    language: str | None = None
    response: str | None = None
    response_label: Label | None = None
    safe_response: str | None = None
    """What a model should say: help with a safe prompt, a refusal of an unsafe one."""
    harmful_response: str | None = None
    """A reply that does what an unsafe prompt asks."""
    rejected: str | None = None
    """A reply that is worse than `safe_response`, where that is another one than the harmful."""
    complied: bool | None = None
    """Whether the served model's own reply does what was asked, as far as that is known."""

    @property
    def group_key(self) -> str:
        """The group, or the prompt's own place where there is none."""
        return self.group if self.group is not None else f"{self.source or ''}:{self.id}"

    @property
    def is_look_alike(self) -> bool:
        """True if it is safe and sounds dangerous, as far as its set says so."""
        sounds = self.kind in LOOK_ALIKE_KINDS or self.source in LOOK_ALIKE_SETS
        return self.label == "safe" and sounds

    @property
    def replies(self) -> tuple[str, ...]:
        """All replies that it brings, whatever they are."""
        found = (self.response, self.safe_response, self.harmful_response, self.rejected)
        return tuple(text for text in found if text is not None)


def require_labels(examples: Sequence[Example]) -> None:
    """Refuse prompts of which one has no label.

    Raises:
        DataError: One has none.
    """
    unlabelled = [example.id for example in examples if example.label is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} prompts have no label (the first is {unlabelled[0]!r}): each needs "
            "label 'unsafe' or 'safe'"
        )


def targets_of(examples: Sequence[Example]) -> Targets:
    """Return what is known of training prompts.

    Raises:
        DataError: A prompt has no label, or all have the same.
    """
    require_labels(examples)
    return Targets(
        unsafe=np.array([example.label == "unsafe" for example in examples]),
        group=np.array([example.group_key for example in examples]),
        source=np.array([example.source or "" for example in examples]),
        category=np.array([example.category or "" for example in examples]),
        complied=_complied(examples),
    )


def _complied(examples: Sequence[Example]) -> Array | None:
    """Return the outcomes [prompt] of the model's own replies, NaN where one is unknown."""
    known = [example.complied for example in examples]
    if all(complied is None for complied in known):
        return None
    return np.array([np.nan if complied is None else float(complied) for complied in known])
