"""Chooses a token among the likeliest ones by the state that each would lead to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from demur.core.reads import CaptureSpec


@dataclass(frozen=True, eq=False)
class Reranking:
    """How tokens are chosen; see `core.interventions.RerankTokens`."""

    top_k: int
    read: CaptureSpec
    """What is read of each token that is tried."""
    weights: Tensor
    """[d_model], float32, with the sign in it."""
    lm_weight: float = 0.0

    def candidates(self, logits: Tensor) -> list[int]:
        """Return the tokens to try, the likeliest first.

        Args:
            logits: [vocabulary].
        """
        ids: list[int] = torch.topk(logits, min(self.top_k, len(logits))).indices.tolist()
        return ids

    def choice(self, logits: Tensor, candidates: list[int], states: Tensor) -> int:
        """Return which of the candidates is taken; of equal ones the likeliest.

        Args:
            logits: Before the token, [vocabulary].
            candidates: Token ids, the likeliest first.
            states: Of each of them, [token, d_model], float32.
        """
        scores = states.to(self.weights.device) @ self.weights
        if self.lm_weight:
            scores = scores + self.lm_weight * torch.log_softmax(logits, -1)[candidates]
        return int(torch.argmax(scores))
