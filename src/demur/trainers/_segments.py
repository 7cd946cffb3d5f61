"""Chooses which third of the layers to steer: the one whose directions speak of refusing.

The directions of a third have a first principal component. It is read as if it were a last state:
through the final norm and the output matrix it makes tokens likely, and the third among whose
likeliest tokens are most words of refusal is chosen.

Paper: SCANS (2024), arXiv 2408.11491, the section on the layers to steer, and its figure of tokens.

Differs: words are counted, where the paper's authors looked at them; of thirds with equally many
the one in the middle is taken, as in the paper, or else the latter one.
"""

from dataclasses import dataclass

import numpy as np
import torch

from demur.core.readings import Array
from demur.modeling.load import LoadedModel
from demur.trainers._directions import first_component

NAMES = ("former", "middle", "latter")
PREFERENCE = ("middle", "latter", "former")
NUM_TOKENS = 50
"""Likeliest tokens in which words of refusal are counted."""
STEMS = (
    "cannot", "can't", "won't", "unable", "sorry", "apolog", "refus", "reject", "declin", "unfort",
    "regret", "impossible", "imposs", "forbid", "prohib", "illegal", "unlawful", "unethical",
    "inappropriate", "unacceptable", "not allowed", "disallow", "deny", "denied", "abstain",
    "refrain", "discourag", "condemn", "warning", "harmful", "unsafe",
    "抱歉", "对不起", "不能", "无法", "拒绝", "禁止", "不允许", "违法", "非法", "不可以",
)  # fmt: skip
"""What words of refusal begin with."""


@dataclass(frozen=True)
class Segment:
    """A third of the layers, and how often it speaks of refusing."""

    name: str
    layers: tuple[int, ...]
    num_words: int
    """Words of refusal among the likeliest tokens."""


def segments(loaded: LoadedModel, directions: Array) -> tuple[Segment, ...]:
    """Return the thirds of a model's layers that are not empty, with their words counted.

    Args:
        loaded: The model.
        directions: [layer, d_model] of all layers.
    """
    thirds = np.array_split(np.arange(len(directions)), len(NAMES))
    return tuple(
        Segment(
            name,
            tuple(layers.tolist()),
            num_refusal_words(spoken(loaded, first_component(directions[layers]))),
        )
        for name, layers in zip(NAMES, thirds, strict=True)
        if len(layers)
    )


def chosen(found: tuple[Segment, ...]) -> Segment:
    """Return the segment with most words of refusal."""
    return max(found, key=lambda of: (of.num_words, -PREFERENCE.index(of.name)))


@torch.inference_mode()
def spoken(loaded: LoadedModel, direction: Array, *, count: int = NUM_TOKENS) -> list[str]:
    """Return the tokens that a direction makes likeliest, the likeliest first.

    Args:
        loaded: The model whose words they are.
        direction: [d_model].
        count: How many.
    """
    norm, head = loaded.parts.final_norm, loaded.model.get_output_embeddings()
    # At the size of a state that is normed already, no norm's epsilon counts.
    state = torch.from_numpy(direction * np.sqrt(len(direction) / (direction @ direction)))
    state = state.to(loaded.device, head.weight.dtype)
    logits = head(norm(state[None, None]))[0, 0].float()
    likeliest = logits.topk(min(count, len(logits))).indices.tolist()
    return [loaded.tokenizer.decode([token_id]) for token_id in likeliest]


def num_refusal_words(tokens: list[str]) -> int:
    """Return how many tokens begin with a word of refusal.

    >>> num_refusal_words([" cannot", "Sorry", " river", " non"])
    2
    """
    return sum(token.strip().lower().startswith(STEMS) for token in tokens)
