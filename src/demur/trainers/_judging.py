"""Judges what was fitted, and what a soft prompt does, on held-out prompts; refuses what is no use.

A sign that slips would train an attack, so nothing is trained on logits that are no better than
chance, and nothing is kept that makes unsafe prompts likelier to be complied with than safe ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.trainers._behaviour import Behaviour
from demur.trainers._measuring import Measured

CONFIDENCE = 1.64
"""Standard errors from one half up to which an AUROC is no better than chance."""


@dataclass(frozen=True, eq=False)
class Moves:
    """What embeddings do to the states of prompts, against the safety prompt that they began as."""

    before: Array
    """[prompt], the compliance logit under the safety prompt."""
    after: Array
    """[prompt], under the embeddings."""
    drift: Array
    """[prompt], L_U."""
    is_safe: Array
    """[prompt]."""

    @property
    def shift(self) -> Array:
        """Of the compliance logit, [prompt]."""
        return self.after - self.before

    def metrics(self) -> dict[str, float]:
        """Return the shift of both labels, how well it tells them apart, and the drift."""
        return {
            "shift_unsafe": float(self.shift[~self.is_safe].mean()),
            "shift_safe": float(self.shift[self.is_safe].mean()),
            "auroc_shift": float(roc_auc_score(self.is_safe, self.shift)),
            "drift": float(self.drift.mean()),
        }


def require_no_attack(moves: Moves) -> None:
    """Refuse a soft prompt that makes unsafe prompts likelier to be complied with than safe ones.

    Raises:
        DataError: It does, by more than chance explains.
    """
    found, limit = moves.metrics()["auroc_shift"], 1 - _chance_limit(moves.is_safe)
    if found <= limit:
        raise DataError(
            f"on held-out prompts the soft prompt moves unsafe prompts towards compliance and safe "
            f"ones away from it (AUROC {found:.2f}: expected more than {limit:.2f}): check the "
            "labels of the training prompts"
        )


def require_better_than_chance(behaviour: Behaviour, held_out: Measured) -> dict[str, float]:
    """Return the AUROC of both logits on held-out prompts.

    That of compliance is for the more compliant half of the prompts against the others.

    Raises:
        DataError: One is no better than chance, or the model does the same with all prompts.
    """
    states = torch.tensor(held_out.states).to(behaviour.mean)
    positives = {
        "compliance": held_out.log_odds > np.median(held_out.log_odds),
        "harmlessness": held_out.harmless == 1,
    }
    return {
        f"auroc_{name}": _auroc(name, behaviour.logit(name, states).cpu().numpy(), is_positive)
        for name, is_positive in positives.items()
    }


def _auroc(name: str, scores: Array, is_positive: Array) -> float:
    if not is_positive.any():
        raise DataError(
            f"all {len(scores)} held-out prompts have the same {name}: there is nothing to learn; "
            "use other prompts, or another model"
        )
    found, limit = float(roc_auc_score(is_positive, scores)), _chance_limit(is_positive)
    if found < limit:
        raise DataError(
            f"{name} is told with an AUROC of {found:.2f} on {len(scores)} held-out prompts, which "
            f"is no better than chance (expected {limit:.2f} or more), and a soft prompt trained "
            "on it could do the opposite: give more or cleaner prompts, or use another model"
        )
    return found


def _chance_limit(is_positive: Array) -> float:
    """Return the AUROC that chance exceeds once in twenty times: Mann and Whitney's variance."""
    positives, number = int(is_positive.sum()), len(is_positive)
    variance = (number + 1) / (12 * positives * (number - positives))
    return 0.5 + CONFIDENCE * float(np.sqrt(variance))
