"""Trains the network of `rolling` in torch: loaded for a fit, never to score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.detectors._tokens import moments, standardised


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    window: int
    d_hidden: int
    num_heads: int
    epochs: int
    lr: float
    weight_decay: float
    batch_size: int


class Heads(nn.Module):
    """Two layers of rectified units, and a query and a value a head."""

    def __init__(self, num_features: int, training: Training) -> None:
        super().__init__()
        self.first = nn.Linear(num_features, training.d_hidden)
        self.second = nn.Linear(training.d_hidden, training.d_hidden)
        self.queries = nn.Linear(training.d_hidden, training.num_heads, bias=False)
        self.values = nn.Linear(training.d_hidden, training.num_heads, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and values, each [token, head], of tokens [token, feature]."""
        hidden = self.second(self.first(tokens).relu()).relu()
        return self.queries(hidden), self.values(hidden)


def rolling_scores(queries: Tensor, values: Tensor, lengths: Tensor, *, window: int) -> Tensor:
    """Return the scores [prompt]: of all full windows the highest; see `_rolling.Rolling`.

    Args:
        queries: [prompt, token, head]; padding stands at the end.
        values: [prompt, token, head].
        lengths: Real tokens of each prompt, over 0.
        window: Tokens of a window.
    """
    before = (0, 0, window - 1, 0)
    # A window ends at each token, and what lies before the first one has no weight.
    attention = functional.pad(queries, before, value=-torch.inf).unfold(1, window, 1).softmax(-1)
    attended = (attention * functional.pad(values, before).unfold(1, window, 1)).sum((-1, -2))
    ends = torch.arange(1, queries.shape[1] + 1)
    counts = (ends >= lengths.clamp(max=window)[:, None]) & (ends <= lengths[:, None])
    return attended.masked_fill(~counts, -torch.inf).amax(1)


def train(
    prompts: Sequence[Array], unsafe: Array, weights: Array, *, training: Training, seed: int
) -> tuple[dict[str, Array], list[float]]:
    """Train from scratch, with AdamW and weighted binary cross-entropy.

    Args:
        prompts: Token states of each, [layer, position, d_model]; standardised batch by batch.
        unsafe: [prompt], true for unsafe.
        weights: [prompt], mean 1.
        training: Sizes and steps.
        seed: Of the first weights and of the order of the prompts; torch's own is left alone.

    Returns:
        The arrays of `_rolling.TokenHeads`, and the mean loss of each epoch.

    Raises:
        DataError: The loss is no longer finite.
    """
    order = np.random.default_rng(seed)
    mean, scale = (array.reshape(-1) for array in moments(prompts))
    labels, shares = torch.tensor(unsafe).float(), torch.tensor(weights).float()
    losses = []
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU too, and those were not forked.
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        heads = Heads(len(mean), training)
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    for _ in range(training.epochs):
        total, shuffled = 0.0, order.permutation(len(prompts))
        for first in range(0, len(prompts), training.batch_size):
            rows = shuffled[first : first + training.batch_size]
            batch = [prompts[row] for row in rows]
            tokens = torch.from_numpy(standardised(batch, mean, scale))
            lengths = torch.tensor([prompt.shape[1] for prompt in batch])
            queries, values = (_padded(array, lengths) for array in heads(tokens))
            scores = rolling_scores(queries, values, lengths, window=training.window)
            loss = functional.binary_cross_entropy_with_logits(scores, labels[rows], shares[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(prompts))
    if not np.isfinite(losses).all():
        raise DataError(f"the loss is not finite: {losses}; lower lr, which is {training.lr}")
    return _folded(heads, mean, scale, num_layers=len(prompts[0])), losses


def _padded(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the tokens of all prompts [token, head] as [prompt, token, head], zeros at the end."""
    return nn.utils.rnn.pad_sequence(list(torch.split(tokens, lengths.tolist())), batch_first=True)


def _folded(heads: Heads, mean: Array, scale: Array, *, num_layers: int) -> dict[str, Array]:
    """Return the arrays of a network that reads raw states."""
    of = {name: tensor.numpy().copy() for name, tensor in heads.state_dict().items()}
    first = (of["first.weight"].T / scale[:, None]).astype(np.float32)  # [feature, unit]
    return {
        "first_weights": first.reshape(num_layers, -1, first.shape[1]),
        # Of the rounded weights: what a far coordinate adds cancels to the last digit.
        "first_bias": of["first.bias"].astype(np.float64) - mean @ first.astype(np.float64),
        "second_weights": of["second.weight"].T.copy(),
        "second_bias": of["second.bias"].astype(np.float64),
        "queries": of["queries.weight"].T.copy(),
        "values": of["values.weight"].T.copy(),
    }
