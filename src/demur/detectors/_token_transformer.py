"""The network behind `token_transformer`, in torch: an encoder over a prompt's token states.

Positions are counted from a prompt's last token backwards, so that a prompt's last tokens mean the
same however long it is. Padding stands after a prompt, is masked in attention and in pooling, and
exists in training only: prompts are scored one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from demur.core.errors import DataError
from demur.core.readings import Array


@dataclass(frozen=True)
class Shape:
    """What an encoder is built from."""

    num_features: int
    """Of a token: layers times d_model, over all reads."""
    d_hidden: int
    num_layers: int
    num_heads: int
    pool: str
    """`mean` over the tokens, or the `last` one."""
    dropout: float


@dataclass(frozen=True)
class Training:
    """How an encoder is trained."""

    epochs: int
    lr: float
    weight_decay: float
    batch_size: int


class TokenEncoder(nn.Module):
    """A linear projection, sinusoidal positions, transformer layers, a pool and one logit."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.pool = shape.pool
        self.project = nn.Linear(shape.num_features, shape.d_hidden)
        self.drop = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                shape.d_hidden,
                shape.num_heads,
                dim_feedforward=4 * shape.d_hidden,
                dropout=shape.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,  # trains without a warm-up of the step size
            )
            for _ in range(shape.num_layers)
        )
        self.norm = nn.LayerNorm(shape.d_hidden)
        self.logit = nn.Linear(shape.d_hidden, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits [prompt].

        Args:
            tokens: Standardised states [prompt, position, feature]; padding stands at the end.
            lengths: Real tokens of each prompt [prompt].
        """
        hidden = self.project(tokens)  # [prompt, position, d_hidden]
        from_end = lengths[:, None] - 1 - torch.arange(tokens.shape[1])  # negative in the padding
        is_padding = from_end < 0
        hidden = self.drop(hidden + sinusoids(from_end, hidden.shape[-1]))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=is_padding)
        hidden = self.norm(hidden)
        if self.pool == "last":
            pooled = hidden[torch.arange(len(hidden)), lengths - 1]
        else:
            total = hidden.masked_fill(is_padding[:, :, None], 0).sum(1)
            pooled = total / lengths[:, None]  # [prompt, d_hidden]
        logits: Tensor = self.logit(pooled)[:, 0]
        return logits


def sinusoids(positions: Tensor, d_hidden: int) -> Tensor:
    """Return the position code of Vaswani et al. (2017): sines first, then cosines.

    Args:
        positions: Whole numbers of any shape.
        d_hidden: Size of the code, even.
    """
    num_waves = d_hidden // 2
    frequencies = 10_000.0 ** (-torch.arange(num_waves) / num_waves)
    phases = positions[..., None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def standardised(prompt: Array, mean: Array, scale: Array) -> Tensor:
    """Return a prompt's token states [position, feature], standardised, float32, copied."""
    return torch.tensor(((prompt - mean) / scale).astype(np.float32))


def train(
    prompts: Sequence[Array],
    unsafe: Array,
    weights: Array,
    *,
    shape: Shape,
    training: Training,
    mean: Array,
    scale: Array,
    seed: int,
) -> tuple[TokenEncoder, list[float]]:
    """Train an encoder from scratch, with AdamW and weighted binary cross-entropy.

    Args:
        prompts: Token states [position, feature] of each prompt; standardised batch by batch, so
            that no second copy of them all is held.
        unsafe: [prompt], true for unsafe.
        weights: [prompt], mean 1.
        shape: Of the encoder.
        training: Epochs, step size and so on.
        mean: [feature].
        scale: [feature].
        seed: Of the first weights, of dropout and of the order of the prompts.

    Returns:
        The encoder, ready to score, and the mean loss of each epoch.

    Raises:
        DataError: The loss is no longer finite.
    """
    order = np.random.default_rng(seed)
    labels, weighed = torch.tensor(unsafe, dtype=torch.float32), torch.tensor(weights).float()
    losses = []
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU too, and those were not forked.
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        encoder = TokenEncoder(shape)
        optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        for _ in range(training.epochs):
            total = 0.0
            for rows in _batches(order.permutation(len(prompts)), training.batch_size):
                batch = [standardised(prompts[row], mean, scale) for row in rows]
                loss = functional.binary_cross_entropy_with_logits(
                    encoder(*padded(batch)), labels[rows], weighed[rows]
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
                optimizer.step()
                total += loss.item() * len(rows)
            losses.append(total / len(prompts))
    if not np.isfinite(losses).all():
        raise DataError(f"the loss is not finite: {losses}; lower lr, which is {training.lr}")
    return encoder.eval(), losses


def _batches(order: Array, size: int) -> Iterator[Array]:
    return (order[start : start + size] for start in range(0, len(order), size))


def padded(batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return prompts as one tensor [prompt, position, feature] with zeros at the end, and lengths.

    Args:
        batch: Tokens [position, feature] of each prompt.
    """
    lengths = torch.tensor([len(prompt) for prompt in batch])
    return nn.utils.rnn.pad_sequence(list(batch), batch_first=True), lengths


def score(encoder: TokenEncoder, tokens: Tensor) -> float:
    """Return the logit of one prompt.

    Args:
        encoder: In eval mode.
        tokens: Standardised states [position, feature].
    """
    with torch.inference_mode():
        return float(encoder(tokens[None], torch.tensor([len(tokens)])).item())


def to_arrays(encoder: TokenEncoder) -> dict[str, Array]:
    """Return an encoder's parameters by name, copied."""
    return {name: tensor.numpy().copy() for name, tensor in encoder.state_dict().items()}


def from_arrays(arrays: dict[str, Array], shape: Shape) -> TokenEncoder:
    """Return the encoder that has these parameters, ready to score.

    Raises:
        DataError: A parameter is missing, unknown, has the wrong shape, or is not finite.
    """
    with torch.device("meta"):  # no first weights are drawn
        encoder = TokenEncoder(shape)
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        wrong = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        raise DataError(
            f"the state does not fit the hyper-parameters: {wrong[0]} has shape "
            f"{found.get(wrong[0], 'none')}, expected {expected.get(wrong[0], 'none')}"
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise DataError("a parameter is not finite: fit the detector again")
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval()
