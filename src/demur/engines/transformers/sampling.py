"""Draws the next token of a row, greedily or from its own generator."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from demur.core.types import Sampling

LEAST_TEMPERATURE = 1e-6
"""Below it logits would overflow; at it the largest one has all of the mass."""


@dataclass(frozen=True)
class Drawn:
    """A token and its log-probability under the model, before temperature and top-p."""

    token_id: int
    logprob: float


def row_generator(sampling: Sampling, draw_id: str) -> torch.Generator:
    """Return a generator seeded by the seed and the id of the draws, on the CPU.

    A row draws the same tokens whatever its neighbours are.
    """
    digest = hashlib.sha256(f"{sampling.seed}:{draw_id}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return generator


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Drawn:
    """Draw one token.

    Args:
        logits: Of one position, [vocabulary], float32.
        sampling: Temperature 0 takes the largest logit.
        generator: The row's own.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    if sampling.temperature == 0:
        token_id = int(torch.argmax(logits))
    else:
        temperature = max(sampling.temperature, LEAST_TEMPERATURE)
        probabilities = torch.softmax(logits / temperature, dim=-1).cpu()
        if sampling.top_p < 1:
            probabilities = _nucleus(probabilities, sampling.top_p)
        token_id = int(torch.multinomial(probabilities, 1, generator=generator))
    return Drawn(token_id, float(logprobs[token_id]))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the smallest set of likely tokens whose mass reaches `top_p`, renormalised."""
    ordered, order = torch.sort(probabilities, descending=True)
    mass_before = ordered.cumsum(0) - ordered
    is_kept = mass_before < top_p
    is_kept[0] = True  # also where float32 has no number as small as top_p
    kept = torch.where(is_kept, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probabilities).scatter(0, order, kept / kept.sum())
