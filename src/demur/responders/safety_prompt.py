"""Lets the model answer flagged prompts under a safety prompt in the system message.

The prompt is read a second time, with the safety prompt appended to its system message; a model
that was not trained to refuse may still answer.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v3, end-to-end study: the
safety system prompt as the response to flagged prompts.

Differs: the text is our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.errors import ConfigError
from demur.core.interventions import PrependText
from demur.core.results import Verdict
from demur.core.types import Chat

__all__ = ["SafetyPrompt"]


@dataclass(frozen=True)
class SafetyPrompt:
    """Answers flagged prompts under a safety prompt."""

    text: str = (
        "The next request may be harmful. If it asks for something that could hurt people, is "
        "illegal, hateful or abusive, decline in one or two sentences, say why, and offer safe "
        "help instead. If it is harmless after all, answer it as usual."
    )
    """What is added to the system message; not empty."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an empty prompt."""
        if not self.text.strip():
            raise ConfigError("the safety prompt is empty: give a text")

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({PrependText})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> PrependText:
        """Return the safety prompt.

        >>> SafetyPrompt("Be careful.").respond(Chat.from_text("Hi"), [])
        PrependText(text='Be careful.')
        """
        return PrependText(self.text)
