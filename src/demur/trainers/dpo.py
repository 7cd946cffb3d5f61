"""DPO: learns to prefer one reply to another, measured against the model by itself.

The pairs are a refusal and a harmful reply to an unsafe prompt, and an answer and a refusal of a
safe one, unless an example brings another `rejected` reply.

Paper: Rafailov et al., Direct Preference Optimization (2023), arXiv 2305.18290, equation 7, with
sums over tokens and beta 0.1; Jain et al., What Makes and Breaks Safety Fine-tuning? (2024), arXiv
2407.10264, with means over tokens, 0.1 for the chosen and 0.01 for the rejected reply.

Differs: low-rank adapters in place of all weights. The reference is the model without them, read
once before training starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from demur.core.errors import ConfigError
from demur.core.training import Progress, Run
from demur.modeling.lora import Adapted
from demur.trainers._objectives import LengthNorm, Objective, Preference
from demur.trainers._pairs import PairTrainer
from demur.trainers._rows import Rows
from demur.trainers._tuning import without_gradients

__all__ = ["DpoTrainer"]

NEEDS = ("peft",)


@dataclass
class DpoTrainer(PairTrainer):
    """Learns preferences; a step reads two replies an example."""

    beta_chosen: float = 0.1
    """How much the better reply's likelihood counts, over 0; 0.1 in both papers."""
    beta_rejected: float = 0.1
    """How much the worse reply's counts, over 0; 0.01 in the second paper."""
    log_probs: LengthNorm = "sum"
    """Of a reply's tokens the `sum`, or the `mean` as in the second paper."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        for name in ("beta_chosen", "beta_rejected"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected more than 0")
        if self.log_probs not in get_args(LengthNorm):
            raise ConfigError(
                f"log_probs is {self.log_probs!r}: expected one of {get_args(LengthNorm)}"
            )

    def objective(self, adapted: Adapted, steps: Sequence[Sequence[Rows]], run: Run) -> Objective:
        """Return the loss, with the reference's log-probabilities read."""
        groups = [rows for step in steps for rows in step]
        untrained = Preference(self.beta_chosen, self.beta_rejected, self.log_probs, {})
        run.report(Progress("reference", 0, 1))
        with adapted.off(), adapted.computing():
            reference = without_gradients(adapted.loaded, groups, untrained.whole_reply)
        run.report(Progress("reference", 1, 1))
        return Preference(self.beta_chosen, self.beta_rejected, self.log_probs, reference)
