"""Trains the embeddings of a safety prompt by gradient descent through a frozen model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demur.core.readings import Array
from demur.modeling.soft_prompts import Placed, SoftPromptReader
from demur.trainers._behaviour import Behaviour
from demur.trainers._drawing import rounds

MAX_NORM = 1.0
"""Of the gradient, over all embeddings."""


@dataclass(frozen=True)
class Tuning:
    """How a soft prompt is trained."""

    steps: int
    batch_size: int
    """Half of them unsafe, half safe."""
    learning_rate: float
    harmlessness_weight: float
    rest_weight: float


@dataclass(frozen=True)
class Step:
    """What one step did."""

    number: int
    """From 1."""
    loss: float
    num_tokens: int
    """That were read, heads left out."""


def tune(
    reader: SoftPromptReader,
    behaviour: Behaviour,
    placed: Sequence[Placed],
    harmless: Array,
    *,
    tuning: Tuning,
    seed: int,
    report: Callable[[Step], None],
) -> tuple[Tensor, list[float]]:
    """Train embeddings from those of the safety prompt on.

    Args:
        reader: Of the frozen model.
        behaviour: Says where states should move.
        placed: The training prompts.
        harmless: [prompt], 1 for safe prompts and 0 for unsafe ones.
        tuning: How.
        seed: Of the batches.
        report: Told of each step.

    Returns:
        The embeddings [token, d_model], and the loss of each step, before the step was taken.
    """
    embeddings = reader.initial()
    initial = reader.all_states(placed, embeddings)
    wanted = torch.tensor(harmless).to(initial)
    embeddings.requires_grad_()
    optimiser = torch.optim.AdamW([embeddings], lr=tuning.learning_rate)
    drawn = batches(harmless, tuning.batch_size, seed=seed)
    curve: list[float] = []
    for number in range(1, tuning.steps + 1):
        rows, loss, num_tokens = next(drawn), 0.0, 0
        batch = [placed[row] for row in rows]
        optimiser.zero_grad()
        for part in reader.batches(batch):
            some = [rows[place] for place in part]
            states = reader.states([placed[row] for row in some], embeddings)
            losses = behaviour.losses(states, initial[some], wanted[some])
            total = losses.total(
                harmlessness_weight=tuning.harmlessness_weight, rest_weight=tuning.rest_weight
            )
            share = total.sum() / len(rows)
            share.backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
            num_tokens += sum(len(placed[row].prompt) - placed[row].where.stop for row in some)
        torch.nn.utils.clip_grad_norm_([embeddings], MAX_NORM, error_if_nonfinite=True)
        optimiser.step()
        curve.append(loss)
        report(Step(number, loss, num_tokens))
    return embeddings.detach(), curve


def batches(harmless: Array, batch_size: int, *, seed: int) -> Iterator[list[int]]:
    """Yield the rows of batch after batch, without end: half unsafe, half safe, in rounds."""
    rng = np.random.default_rng(seed)
    of_labels = [rounds(np.flatnonzero(harmless == label), rng) for label in (0, 1)]
    while True:
        yield [next(rows) for rows in of_labels for _ in range(batch_size // 2)]
