"""One labelled (or unlabelled) prompt of a data set."""

from dataclasses import dataclass
from typing import Literal

from demur.core.types import Chat

Label = Literal["unsafe", "safe"]


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

    @property
    def group_key(self) -> str:
        """The group, or the prompt's own place where there is none."""
        return self.group if self.group is not None else f"{self.source or ''}:{self.id}"
