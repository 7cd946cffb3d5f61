"""Unlearning: learns the wanted reply, and unlearns the unwanted one.

Paper: Jain et al., What Makes and Breaks Safety Fine-tuning? (2024), arXiv 2407.10264: l_p - 0.1
l_d, each the mean cross-entropy of a token, with as many unsafe as safe prompts.

Differs: low-rank adapters in place of all weights. A token that has become unlikely enough no
longer counts, since -l_d has no lower bound: it would pull the model apart once the reply is
forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.core.errors import ConfigError
from demur.core.training import Run
from demur.modeling.lora import Adapted
from demur.trainers._objectives import Objective, Unlearning
from demur.trainers._pairs import PairTrainer
from demur.trainers._rows import Rows

__all__ = ["UnlearningTrainer"]

NEEDS = ("peft",)


@dataclass
class UnlearningTrainer(PairTrainer):
    """Learns one reply of a pair and unlearns the other; a step reads two replies an example."""

    weight: float = 0.1
    """Of the unwanted reply's loss, 0 or more; the paper's 0.1."""
    limit: float = 10.0
    """Nats that an unwanted token's loss counts at most, over 0; the paper has no limit."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if not self.weight >= 0:
            raise ConfigError(f"weight is {self.weight}: expected 0 or more")
        if not self.limit > 0:
            raise ConfigError(f"limit is {self.limit}: expected more than 0")

    def objective(self, adapted: Adapted, steps: Sequence[Sequence[Rows]], run: Run) -> Objective:
        """Return the loss."""
        return Unlearning(self.weight, self.limit)
