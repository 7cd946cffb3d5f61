"""Pairs of replies, one wanted and one not: what DPO and unlearning learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.core.errors import DataError
from demur.modeling.load import LoadedModel
from demur.trainers._adapter import AdapterTrainer
from demur.trainers._rows import Said, constant
from demur.trainers._tuning import Items


@dataclass
class PairTrainer(AdapterTrainer):
    """Trains adapters on pairs; a method says what is made small of them."""

    learning_rate: float | None = 2e-4
    """Of AdamW, over 0; it rises in a line and falls as a cosine. None as in other trainers, which
    is higher for a small model: mind that a rejected reply can lose without bound."""

    def require(self, said: Sequence[Said]) -> None:
        """Refuse examples of which no unsafe prompt has two replies.

        Raises:
            DataError: None has.
        """
        if not pairs(said).unsafe:
            raise DataError(
                f"none of {len(said)} examples is an unsafe prompt with a harmful_response or a "
                "rejected reply: give unsafe prompts with one"
            )

    def items(self, loaded: LoadedModel, said: Sequence[Said]) -> Items:
        """Return a pair for each prompt with two replies."""
        return pairs(said)


def pairs(said: Sequence[Said]) -> Items:
    """Return a pair for each prompt with two replies."""
    both = [of for of in said if of.safe and of.rejected]
    return Items(
        [constant(*of.pair()) for of in both if of.is_unsafe],
        [constant(*of.pair()) for of in both if not of.is_unsafe],
    )
