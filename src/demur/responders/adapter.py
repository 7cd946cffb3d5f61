"""Answers flagged prompts under a LoRA adapter: a model that was tuned to be safe, for them alone.

The adapter stands beside the model: its weights stay as they are, and prompts that are not flagged
never see it. Rows with and without it, and rows of other adapters, decode in one batch. A flagged
prompt is read again under it; where the adapter changes upper blocks only, what the blocks below
made of the prompt is kept. Any LoRA folder of PEFT will do, trained by demur or not: what it makes
of flagged prompts is what it was trained for.

Paper: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), arXiv 2106.09685:
W x + (alpha / r) B A x.

Differs: only flagged prompts are answered so, and the strength can be set when it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.adapters import LoraFolder
from demur.core.interventions import UseAdapter
from demur.core.results import Verdict
from demur.core.types import Chat

__all__ = ["Adapter"]


@dataclass(frozen=True)
class Adapter:
    """Answers flagged prompts under an adapter."""

    trained: LoraFolder
    """Made by `demur train` or by PEFT."""
    scale: float = 1.0
    """Of what the adapter adds: 1 as it was trained, 0 changes nothing, more than 1 goes on in the
    same direction."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _ = self.returns

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({UseAdapter})

    @property
    def returns(self) -> tuple[UseAdapter]:
        """The intervention, for every chat."""
        return (UseAdapter(self.trained.ref, self.scale),)

    @property
    def loads(self) -> tuple[UseAdapter]:
        """The adapter."""
        return self.returns

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> UseAdapter:
        """Return the adapter."""
        return self.returns[0]
