# ruff: noqa: PLR0917  # an op takes its arguments by place
"""Taps: what computes read-outs inside vLLM's own forward pass.

A tapped block calls a registered custom op on its output. The sum of what a block returns is made
outside of the op: the compiler then fuses what comes before and after as it does without a tap, and
rounds alike. An op leaves products and norms of states behind; what they come to is worked out once
a step, since an operation on few numbers takes as long as one on all of them. Where a tap did not
run, they are NaN.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.readings import Array
from demur.engines._columns import Columns
from demur.engines.vllm.blocks import blocks_of, follow, register
from demur.modeling.pooling import RMS_EPSILON

if torch.version.cuda:  # then there is Triton, too
    from demur.engines.vllm.tap_kernel import MOST_COLUMNS, tap_all

EVERY = -1
"""Tokens are wanted."""
NOWHERE = -1
"""Stand the numbers of a token that was not."""


def tap(
    state: Tensor,
    weights: Tensor,
    products: Tensor,
    norms: Tensor,
    wanted: Tensor,
    number: Tensor,
) -> None:
    """Keep what a block's read-outs need of the tokens of a step.

    Args:
        state: After the block, [token, d_model].
        weights: [d_model, column], float32.
        products: [most tokens, column], float32, of states and weights; a row a wanted token.
        norms: [most tokens], float32, of the states, likewise.
        wanted: [most tokens], the tokens to read; what is behind `number` does not count.
        number: [], int, on the CPU: how many are wanted; EVERY stands for all tokens.
    """
    num_tokens = int(number)
    if num_tokens == 0:
        return
    if state.is_cuda and weights.shape[1] <= MOST_COLUMNS:
        tap_all(state, weights, products, norms)
        return
    read = state if num_tokens == EVERY else state.index_select(0, wanted[:num_tokens])
    read = read.float()
    torch.mm(read, weights, out=products[: len(read)])
    torch.linalg.vector_norm(read, dim=-1, out=norms[: len(read)])


register(
    "tap",
    "Tensor state, Tensor weights, Tensor(a!) products, Tensor(b!) norms, Tensor wanted, "
    "Tensor number",
    tap,
)


class Taps:
    """The tapped blocks of one worker's model.

    Args:
        model: vLLM's, loaded and not compiled yet.
        columns: What to compute.
        max_tokens: Most tokens of a step.
        device: Where the model is.

    Raises:
        CapabilityError: The model's blocks are not found, or return something else.
    """

    def __init__(
        self, model: nn.Module, columns: Columns, *, max_tokens: int, device: torch.device
    ) -> None:
        blocks = blocks_of(model, columns.num_blocks)
        self.columns = columns
        shape = len(columns.layers), max_tokens
        self._products = torch.full((*shape, len(columns)), torch.nan, device=device)
        self._norms = torch.full(shape, torch.nan, device=device)
        # A captured graph reads all tokens: it would keep what was wanted when it was captured.
        self.can_choose = device.type == "cpu"
        self._wanted = torch.zeros(max_tokens if self.can_choose else 1, dtype=torch.long)
        self._number = torch.tensor(EVERY)
        self._place = np.arange(max_tokens)
        for slot, layer in enumerate(columns.layers):
            buffers = {
                "weights": torch.from_numpy(columns.weights_at(layer)).to(device),
                "products": self._products[slot],
                "norms": self._norms[slot],
                "wanted": self._wanted.to(device),
                "number": self._number,
            }
            follow(blocks[layer], "tap", buffers, _tapped)

    def begin(self, *, is_read: bool) -> None:
        """Forget the last step, so that taps that do not run leave no number behind.

        Args:
            is_read: Values of the coming step will be asked for.
        """
        if self.can_choose:
            self._number.fill_(0)
            self._place[:] = NOWHERE
        elif is_read:
            self._forget()

    def choose(self, tokens: Array) -> None:
        """Say which tokens of the coming pass are read, where taps can choose.

        Args:
            tokens: [token], ascending; the values of all others are NaN.
        """
        self._forget()
        self._wanted[: len(tokens)] = torch.from_numpy(tokens)
        self._number.fill_(len(tokens))
        self._place[tokens] = np.arange(len(tokens))

    def keep(self, rows: slice) -> "Kept":
        """Copy what the last pass has left of some tokens, behind it, without waiting for it."""
        if self.can_choose:
            taken = slice(int(self._number))
            return Kept(
                self.columns,
                self._products[:, taken].clone(),
                self._norms[:, taken].clone(),
                first=rows.start,
                place=self._place[rows].copy(),
            )
        products = self._products[:, rows].to("cpu", non_blocking=True)
        norms = self._norms[:, rows].to("cpu", non_blocking=True)
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record()
        place = np.arange(rows.stop - rows.start)
        return Kept(self.columns, products, norms, first=rows.start, place=place, copied=copied)

    def _forget(self) -> None:
        self._products.fill_(torch.nan)
        self._norms.fill_(torch.nan)


@dataclass(frozen=True, eq=False)
class Kept:
    """What taps have left of some tokens of a step."""

    columns: Columns
    """What was computed."""
    products: Tensor
    """[tapped block, token that was read, column]."""
    norms: Tensor
    """[tapped block, token that was read]."""
    first: int
    """The first of the tokens."""
    place: Array
    """[token], where its numbers stand among those that were read, or NOWHERE."""
    copied: torch.cuda.Event | None = None
    """The copy is there once this has happened."""

    def values(self, rows: slice) -> Array:
        """Return the columns of some of the tokens, [token, column], float64; waits for the copy.

        A token that was not chosen, or did not pass all taps, has NaN.
        """
        return self._values[rows.start - self.first : rows.stop - self.first]

    @cached_property
    def _values(self) -> Array:
        """The columns of all the tokens, worked out once for all prompts of the step."""
        if self.copied is not None:
            self.copied.synchronize()
        if not self.norms.shape[1]:
            return np.full((len(self.place), len(self.columns)), np.nan)
        products = self.products.numpy().astype(np.float64)
        norms = self.norms.numpy().astype(np.float64)[..., None]
        d_model = self.columns.columns[0].weights.shape[1]
        scaled = products / np.sqrt(norms**2 / d_model + RMS_EPSILON)
        values: Array = np.where(self.columns.is_rms, scaled, products).sum(0)[self.place]
        values[self.place == NOWHERE] = np.nan
        return values


def _tapped(block: Any, hidden: Tensor, residual: Tensor) -> None:
    torch.ops.demur.tap(
        hidden + residual,
        block.demur_tap_weights,
        block.demur_tap_products,
        block.demur_tap_norms,
        block.demur_tap_wanted,
        block.demur_tap_number,
    )
