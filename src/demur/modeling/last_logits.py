"""Asks a model for the logits of the last token alone, without a copy of its LM head."""

import torch
from torch import Tensor


def last_only(num_tokens: int, *, device: torch.device) -> Tensor:
    """Return what a model of transformers takes as `logits_to_keep` for the last token.

    It also takes the number 1, but then its head reads a slice of the states: torch does not fold
    that into a plain product, and copies the whole weight to make a batched one, each time. An
    index picks a row that is contiguous.

    Args:
        num_tokens: That the model reads in this pass.
        device: Of the model.

    >>> last_only(3, device=torch.device("cpu"))
    tensor([2])
    """
    return torch.tensor([num_tokens - 1], device=device)
