"""Safety fine-tuning: learns refusals of unsafe prompts, and answers to safe ones.

Paper: Jain et al., What Makes and Breaks Safety Fine-tuning? (2024), arXiv 2407.10264: SSFT, the
cross-entropy of the preferred reply.

Differs: low-rank adapters in place of all weights, so that the model by itself stays what it was.
Unsafe prompts are half of a step in place of a fifth. A prompt without a refusal of its own gets
one of the texts that ship; a safe prompt without an answer is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.modeling.load import LoadedModel
from demur.trainers._adapter import AdapterTrainer
from demur.trainers._rows import Said, constant
from demur.trainers._tuning import Items

__all__ = ["SftTrainer"]

NEEDS = ("peft",)


@dataclass
class SftTrainer(AdapterTrainer):
    """Learns what should be said: -(1 / N) sum log p(token) over the tokens of replies."""

    def items(self, loaded: LoadedModel, said: Sequence[Said]) -> Items:
        """Return a row for each prompt with a reply."""
        with_reply = [of for of in said if of.safe]
        return Items(
            [constant(of.reply()) for of in with_reply if of.is_unsafe],
            [constant(of.reply()) for of in with_reply if not of.is_unsafe],
        )
