"""Chooses each token of a reply among the likeliest by the state that it would lead to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from demur.core.readings import Array
from demur.core.reads import CaptureSpec


@dataclass(frozen=True, eq=False)
class Reranking:
    """How tokens are chosen; see `RerankTokens`."""

    top_k: int
    read: CaptureSpec
    """What is read of each token that is tried."""
    weights: Tensor
    """[d_model], with the sign in it."""
    lm_weight: float

    def candidates(self, logits: Tensor) -> list[int]:
        """Return the tokens to try, the likeliest first."""
        ids: list[int] = torch.topk(logits, min(self.top_k, len(logits))).indices.tolist()
        return ids

    def choice(self, logits: Tensor, candidates: list[int], states: Array) -> int:
        """Return which of the candidates is taken; of equal ones the likeliest.

        Args:
            logits: Before the token, [vocabulary].
            candidates: Token ids, the likeliest first.
            states: Of each of them, [token, 1, d_model].
        """
        scores = torch.from_numpy(states[:, 0]).to(self.weights.device) @ self.weights
        if self.lm_weight:
            scores = scores + self.lm_weight * torch.log_softmax(logits, -1)[candidates]
        return int(torch.argmax(scores))
