"""Fits an output matrix to given tokens: a softmax regression on states that never change.

Only some rows are fitted: those of the tokens that are to be said, and of the tokens that the model
finds likeliest in their place. The others keep their share of the probability as it was: a row's
gradient is its probability times a state, so that they would hardly move, and the fit of a
vocabulary of 150,000 costs what one of a few thousand does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demur.modeling.output_head import finished

TOKENS_A_CHUNK = 256
"""That meet the whole vocabulary at a time."""
TOKENS_ASKED = 4096
"""That are asked which rows are likely in their place, at most."""

Report = Callable[[int, int, float], None]
"""Takes the step, the number of steps and the loss."""


@dataclass(frozen=True)
class Plan:
    """How a fit goes."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_tokens: int
    num_rows: int
    seed: int


@dataclass(frozen=True, eq=False)
class FittedRows:
    """The rows of an output matrix that were fitted."""

    rows: Tensor
    """[row], ascending."""
    change: Tensor
    """What is added to each, [row, d_model], float32."""
    curve: list[float]
    """The loss after each step."""


def fit_rows(
    head: Tensor, states: Tensor, token_ids: Tensor, *, plan: Plan, config: Any, report: Report
) -> FittedRows:
    """Fit the rows of an output matrix to the tokens that are to follow states.

    Args:
        head: The matrix to start from, [vocabulary, d_model]; it is not changed.
        states: [token, d_model], float32, on the matrix's device.
        token_ids: What is to follow each, [token].
        plan: How.
        config: Of the model's decoder.
        report: Told of each step.
    """
    rows = _chosen(head, states, token_ids, num_rows=plan.num_rows, config=config)
    rest = _rest(head, states, rows, config)
    start = head[rows].float()
    places = torch.searchsorted(rows, token_ids)
    change = torch.zeros_like(start, requires_grad=True)
    # The change decays, and so the matrix goes back to where it started rather than to nothing.
    optimiser = torch.optim.AdamW([change], lr=plan.learning_rate, weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(plan.seed)
    num_steps = plan.epochs * -(-len(states) // plan.batch_tokens)
    curve: list[float] = []
    for _ in range(plan.epochs):
        order = torch.randperm(len(states), generator=generator).to(states.device)
        for batch in torch.split(order, plan.batch_tokens):
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * (1 - len(curve) / num_steps)
            logits = finished(states[batch] @ (start + change).T, config)
            whole = torch.logaddexp(logits.logsumexp(-1), rest[batch])
            loss = (whole - logits.gather(-1, places[batch][:, None])[:, 0]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            curve.append(float(loss.detach()))
            report(len(curve), num_steps, curve[-1])
    return FittedRows(rows, change.detach(), curve)


@torch.no_grad()
def _chosen(
    head: Tensor, states: Tensor, token_ids: Tensor, *, num_rows: int, config: Any
) -> Tensor:
    """Return the rows to fit: the tokens that are to be said, and the likeliest others."""
    likely = torch.zeros(len(head), device=head.device)
    asked = states[:: -(-len(states) // TOKENS_ASKED)]
    for part in torch.split(asked, TOKENS_A_CHUNK):
        likely += finished((part.to(head.dtype) @ head.T).float(), config).softmax(-1).sum(0)
    wanted = torch.unique(token_ids)
    likely[wanted] = -1.0
    more = min(max(num_rows - len(wanted), 0), len(likely) - len(wanted))
    return torch.cat([wanted, likely.topk(more).indices]).sort().values


@torch.no_grad()
def _rest(head: Tensor, states: Tensor, rows: Tensor, config: Any) -> Tensor:
    """Return the log of the sum of exponents [token] over the rows that are not fitted."""
    found = []
    for part in torch.split(states, TOKENS_A_CHUNK):
        logits = finished((part.to(head.dtype) @ head.T).float(), config)
        logits[:, rows] = -torch.inf
        found.append(logits.logsumexp(-1))
    return torch.cat(found)
