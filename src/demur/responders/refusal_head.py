"""Answers flagged prompts through an output matrix that was trained on refusals.

The model reads the prompt as always, and its states stay as they are; only the words that it makes
of them are others. Nothing is read again: the first token comes from the prefill's last state.

Paper: SafeSwitch (2025), arXiv 2502.01042, section on the refusal head: P(y_t) = softmax(T_R h_t)
in place of softmax(T h_t) for flagged prompts.

Differs: the matrix is one of its own also where a model ties its head to its embeddings, and rows
with and without it decode in one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.interventions import SwapHead
from demur.core.results import Verdict
from demur.core.trained import Trained
from demur.core.types import Chat

__all__ = ["RefusalHead"]


@dataclass(frozen=True)
class RefusalHead:
    """Answers flagged prompts through a refusal head."""

    trained: Trained
    """Holds `head` [vocabulary, d_model]."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an artifact without a head."""
        self.trained.tensor("head")

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({SwapHead})

    @property
    def returns(self) -> tuple[SwapHead]:
        """The intervention, for every chat."""
        return (SwapHead(self.trained.tensor("head")),)

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> SwapHead:
        """Return the refusal head."""
        return self.returns[0]
