"""Answers flagged prompts with a fixed text; the model draws nothing.

The cheapest responder and the safest: what it says does not depend on the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.errors import ConfigError
from demur.core.interventions import ReplyWith
from demur.core.results import Verdict
from demur.core.types import Chat

__all__ = ["FixedReply"]


@dataclass(frozen=True)
class FixedReply:
    """Replies with the same text to every flagged prompt."""

    text: str = "I can't help with that."
    """What is said; not empty."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an empty reply."""
        if not self.text.strip():
            raise ConfigError("the fixed reply is empty: give a text")

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({ReplyWith})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> ReplyWith:
        """Return the fixed reply.

        >>> FixedReply("No.").respond(Chat.from_text("Hi"), [])
        ReplyWith(text='No.')
        """
        return ReplyWith(self.text)
