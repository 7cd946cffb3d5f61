"""Trains adapters by gradient descent: batches, steps, the learning rate, and where it stands.

A step draws examples of both labels, reads them in parts of like length under a token budget, and
adds the parts' gradients up. What a step does follows from the seed and its number alone, so that a
training which goes on from a checkpoint ends in the same bits as one that was never stopped.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demur.core.training import Progress, Report
from demur.modeling.labelled import label_batches, label_log_probs
from demur.modeling.load import LoadedModel
from demur.modeling.lora import Adapted
from demur.trainers._checkpoints import Checkpoint, TrainingState
from demur.trainers._drawing import rounds
from demur.trainers._objectives import LogProbs, Objective
from demur.trainers._rows import Item, Row, Rows

MAX_NORM = 1.0
"""Of the gradient, over all weights."""
STEPS_A_CHECKPOINT = 25
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, beside the number of steps."""


@dataclass(frozen=True)
class Plan:
    """How adapters are trained."""

    steps: int
    batch_size: int
    """Items a step."""
    unsafe_share: float
    """Of a step's items, where there are items of both labels."""
    learning_rate: float
    """The highest: it rises in a line, then falls as a cosine to 0."""
    warm_up: float
    """Share of the steps in which it rises."""
    weight_decay: float
    seed: int

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Items:
    """What a training draws from."""

    unsafe: Sequence[Item]
    safe: Sequence[Item]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.unsafe) + len(self.safe)

    def drawn(self, plan: Plan) -> Iterator[list[Rows]]:
        """Yield the rows of step after step, without end; all items come equally often."""
        rng = np.random.default_rng(plan.seed)
        num_unsafe = round(plan.unsafe_share * plan.batch_size)
        if not self.unsafe or not self.safe:
            num_unsafe = plan.batch_size if self.unsafe else 0
        everything = [*self.unsafe, *self.safe]
        sides = [
            (rounds(np.arange(len(self.unsafe)), rng), num_unsafe),
            (
                rounds(len(self.unsafe) + np.arange(len(self.safe)), rng),
                plan.batch_size - num_unsafe,
            ),
        ]
        step = 0
        while True:
            numbers = [next(side) for side, number in sides for _ in range(number)]
            yield [
                everything[number](np.random.default_rng((plan.seed, step, place)))
                for place, number in enumerate(numbers)
            ]
            step += 1


def never(_step: int) -> bool:
    """Let a training take all its steps."""
    return False


def tune(
    adapted: Adapted,
    items: Items,
    objective: Objective,
    *,
    plan: Plan,
    checkpoint: Checkpoint,
    report: Report,
    is_done: Callable[[int], bool] = never,
) -> TrainingState:
    """Train adapters, from a checkpoint where there is one.

    Args:
        adapted: The model; its adapters are changed, everything else stays as it is.
        items: What is drawn from.
        objective: What is made small.
        plan: How.
        checkpoint: Where the state is kept.
        report: Told of each step.
        is_done: Asked after each step, by its number from 1; the training ends where it says so.

    Returns:
        The state after the last step.
    """
    weights = adapted.weights()
    optimiser = torch.optim.AdamW(
        list(weights.values()), lr=plan.learning_rate, weight_decay=plan.weight_decay
    )
    state = checkpoint.read() or TrainingState()
    _restore(weights, optimiser, state)
    read_before = state.num_tokens
    for step, rows in enumerate(items.drawn(plan)):
        if step == plan.steps:
            break
        if step < state.step:
            continue
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate_at(step)
        _take_step(adapted, rows, objective, optimiser, state=state)
        state.step = step + 1
        if state.step % STEPS_A_CHECKPOINT == 0 and state.step < plan.steps:
            state.tensors = _kept(weights, optimiser)
            checkpoint.write(state)
        num_tokens = state.num_tokens - read_before
        report(Progress("training", state.step, plan.steps, state.curve[-1], num_tokens))
        if is_done(state.step):
            break
    return state


def _take_step(
    adapted: Adapted,
    whole: Sequence[Rows],
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    *,
    state: TrainingState,
) -> None:
    """Take one step, and write into the state what came of it."""
    optimiser.zero_grad()
    loss, sums = 0.0, defaultdict[str, list[float]](lambda: [0.0, 0.0])
    for chosen in label_batches(adapted.loaded, whole):
        part = [whole[number] for number in chosen]
        with adapted.computing():
            log_probs = log_probs_of(adapted.loaded, part)
        share = objective.share(part, log_probs, whole)
        share.loss.backward()  # type: ignore[no-untyped-call]
        loss += float(share.loss.detach())
        for name, of in share.watched.items():
            sums[name] = [before + more for before, more in zip(sums[name], of, strict=True)]
    parameters = [weight for group in optimiser.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM, error_if_nonfinite=True)
    optimiser.step()
    for name in dict.fromkeys((*state.curves, *sums)):
        values = state.curves.setdefault(name, [None] * len(state.curve))
        values.append(sums[name][0] / sums[name][1] if name in sums else None)
    state.curve.append(loss)
    state.num_tokens += sum(len(row.token_ids) for rows in whole for row in rows)


def log_probs_of(loaded: LoadedModel, part: Sequence[Rows]) -> list[LogProbs]:
    """Return the log-probabilities of the labels of groups of rows, read in one batch."""
    found = iter(label_log_probs(loaded, [row for rows in part for row in rows]))
    return [[next(found) for _ in rows] for rows in part]


@torch.no_grad()
def without_gradients(
    loaded: LoadedModel, groups: Sequence[Rows], whole_reply: Callable[[Tensor], Tensor]
) -> dict[Row, float]:
    """Return one number of the log-probabilities of each row's labels.

    Args:
        loaded: The model.
        groups: Rows; those that are alike are read once.
        whole_reply: Makes a number of a row's log-probabilities [label].
    """
    rows = list(dict.fromkeys(row for of_group in groups for row in of_group))
    found: dict[Row, float] = {}
    for batch in label_batches(loaded, [(row,) for row in rows]):
        chosen = [rows[number] for number in batch]
        for row, log_probs in zip(chosen, label_log_probs(loaded, chosen), strict=True):
            found[row] = float(whole_reply(log_probs))
    return found


def _kept(weights: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of the weights and of the optimiser's moments."""
    kept = {}
    for name, weight in weights.items():
        kept[name] = weight.detach().cpu().clone()
        for moment in MOMENTS:
            kept[f"{moment}:{name}"] = optimiser.state[weight][moment].cpu().clone()
    return kept


@torch.no_grad()
def _restore(
    weights: dict[str, Tensor], optimiser: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Put a state's weights and moments in place."""
    if not state.step:
        return
    for name, weight in weights.items():
        weight.copy_(state.tensors[name])
        moments = {of: state.tensors[f"{of}:{name}"].to(weight.device) for of in MOMENTS}
        optimiser.state[weight] = {"step": torch.tensor(float(state.step)), **moments}
