"""Answers flagged prompts under a soft prompt: trained embeddings in the place of a safety prompt.

They stand where the tokens of a safety prompt would stand in the system message; the chat is read a
second time with them. The model itself stays as it is, and prompts that are not flagged never see
them.

Paper: Zheng et al., On Prompt-Driven Safeguarding for Large Language Models (2024), arXiv
2401.18018 (DRO): the optimised safety prompt.

Differs: the paper prepends it to every query; here the guard decides which queries get it (a guard
that flags all gives the paper's). An existing system message is kept, and the embeddings follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.interventions import PrependEmbeddings
from demur.core.results import Verdict
from demur.core.trained import Trained
from demur.core.types import Chat

__all__ = ["SoftPrompt"]


@dataclass(frozen=True)
class SoftPrompt:
    """Answers flagged prompts under trained embeddings."""

    trained: Trained
    """Holds `embeddings` [token, d_model], and `text`, the safety prompt that they stand for."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an artifact without embeddings or their text."""
        self.trained.tensor("embeddings")
        self.trained.value("text")

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({PrependEmbeddings})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> PrependEmbeddings:
        """Return the soft prompt."""
        return PrependEmbeddings(self.trained.value("text"), self.trained.tensor("embeddings"))
