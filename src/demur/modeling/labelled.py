"""Log-probabilities of labels at chosen positions, with gradients: what adapters are trained on.

Rows are padded on the right, where causal attention never sees the padding, so that no mask is
needed. Logits are computed where there is a label, and nowhere else.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from demur.modeling.load import LoadedModel
from demur.modeling.output_head import finished
from demur.modeling.packing import batches

IGNORE = -100
"""The label of a position at which nothing is learnt."""
TOKENS_A_BATCH = {"cpu": 1024}
"""Of a padded batch, by device: what the way back keeps of more would not fit beside a model."""
TOKENS_A_BATCH_ELSEWHERE = 8192


class Labelled(Protocol):
    """Tokens, and what is to follow some of them."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What is read."""

    @property
    def labels(self) -> tuple[int, ...]:
        """For each token that is read the one to follow it, or `IGNORE`."""


def label_log_probs(loaded: LoadedModel, rows: Sequence[Labelled]) -> list[Tensor]:
    """Return the log-probability of each label of each row, one tensor [label] a row, float32.

    Args:
        loaded: The model; gradients flow back to the weights that take any.
        rows: In one batch, each with a label at least.
    """
    longest = max(len(row.token_ids) for row in rows)
    ids = torch.tensor([_padded(row.token_ids, longest, row.token_ids[-1]) for row in rows])
    labels = torch.tensor([_padded(row.labels, longest, IGNORE) for row in rows])
    labels = labels.to(loaded.device)
    states = loaded.parts.body(input_ids=ids.to(loaded.device), use_cache=False)[0]
    wanted = labels != IGNORE  # [row, token]
    config = loaded.model.config.get_text_config(decoder=True)
    logits = finished(loaded.model.get_output_embeddings()(states[wanted]).float(), config)
    found = -functional.cross_entropy(logits, labels[wanted], reduction="none")
    return list(torch.split(found, wanted.sum(1).tolist()))


def label_batches(loaded: LoadedModel, groups: Sequence[Sequence[Labelled]]) -> Iterator[list[int]]:
    """Yield which groups of rows are read together: of like length, under a token budget.

    Args:
        loaded: On whose device they are read.
        groups: Rows that must not be parted.
    """
    widths = [len(rows) * max(len(row.token_ids) for row in rows) for rows in groups]
    order = sorted(range(len(groups)), key=lambda number: (widths[number], number))
    budget = TOKENS_A_BATCH.get(loaded.device.type, TOKENS_A_BATCH_ELSEWHERE)
    for batch in batches([widths[number] for number in order], budget=budget, is_padded=True):
        yield order[batch.start : batch.stop]


def _padded(ids: Sequence[int], length: int, filler: int) -> list[int]:
    return [*ids, *[filler] * (length - len(ids))]
