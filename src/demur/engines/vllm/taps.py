# ruff: noqa: PLR0917  # an op takes its arguments by place
"""Taps: what computes read-outs inside vLLM's own forward pass.

A tapped block calls a registered custom op on its output. torch.compile and CUDA graphs keep such
an op, since it states which of its arguments it changes; Python hooks they drop without a word. The
last column of the buffer counts the taps that ran for a token, so that one that was lost is seen.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError
from demur.core.readings import Array
from demur.engines._columns import Columns, Spans, spans_of

_EPSILON = 1e-12


@torch.library.custom_op("demur::tap", mutates_args=("scores",))
def tap(
    hidden: Tensor, residual: Tensor, weights: Tensor, is_rms: Tensor, scores: Tensor, first: bool
) -> None:
    """Add a block's products to the columns of the tokens of a step.

    Args:
        hidden: What the block returned, [token, d_model].
        residual: To be added to it, [token, d_model].
        weights: [d_model, column], float32.
        is_rms: [column], true where states are divided by their root mean square.
        scores: [most tokens, column + 1], float32.
        first: This is the lowest tap: what the buffer held is over.
    """
    num_tokens = hidden.shape[0]
    state = (hidden + residual).float()  # rounded as the model's own sum is
    products = state @ weights
    scale = torch.rsqrt(state.square().mean(-1, keepdim=True) + _EPSILON)
    products = torch.where(is_rms, products * scale, products)
    if first:
        scores[:num_tokens, :-1] = products
        scores[:num_tokens, -1] = 1
    else:
        scores[:num_tokens, :-1] += products
        scores[:num_tokens, -1] += 1


@tap.register_fake
def _(
    hidden: Tensor, residual: Tensor, weights: Tensor, is_rms: Tensor, scores: Tensor, first: bool
) -> None:
    return None


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
        blocks = _blocks(model, columns.num_blocks)
        self._columns = columns
        self._scores = torch.full((max_tokens, len(columns) + 1), torch.nan, device=device)
        is_rms = torch.from_numpy(columns.is_rms).to(device)
        for layer in columns.layers:
            weights = torch.from_numpy(columns.weights_at(layer)).to(device)
            _tap_block(blocks[layer], weights, is_rms, self._scores, layer == columns.layers[0])

    def values(self, rows: slice) -> Array:
        """Return the columns of some tokens of the last step, [token, column], float64.

        A token that did not pass all taps has NaN.
        """
        found = self._scores[rows].cpu().numpy().astype(np.float64)
        found[found[:, -1] != len(self._columns.layers)] = np.nan
        values: Array = found[:, :-1]
        return values

    def default_spans(self, length: int) -> Spans:
        """Return what is read of a prompt whose turns nobody has named: all of it for one."""
        whole = [(0, length)]
        return [spans_of(column.spec, length, whole) for column in self._columns.columns]

    def clear(self) -> None:
        """Forget the last step, so that taps that do not run leave no number behind."""
        self._scores.fill_(torch.nan)


def _blocks(model: nn.Module, num_blocks: int) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_blocks]
    if len(found) != 1:
        raise CapabilityError(
            f"{type(model).__name__} has {len(found)} lists of {num_blocks} blocks: expected one; "
            "serve this model with the transformers engine"
        )
    return found[0]


def _tap_block(
    block: nn.Module, weights: Tensor, is_rms: Tensor, scores: Tensor, first: bool
) -> None:
    """Let a block call the op after its own forward; its parameters keep their names."""
    plain = type(block)

    class Tapped(plain):  # type: ignore[misc, valid-type]
        """A block whose output is read."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Run the block as it is, and read what it returns."""
            hidden, residual = plain.forward(self, *args, **kwargs)
            torch.ops.demur.tap(
                hidden, residual, self.demur_weights, self.demur_is_rms, self.demur_scores, first
            )
            return hidden, residual

    Tapped.__name__ = Tapped.__qualname__ = f"Tapped{plain.__name__}"
    block.register_buffer("demur_weights", weights, persistent=False)
    block.register_buffer("demur_is_rms", is_rms, persistent=False)
    block.register_buffer("demur_scores", scores, persistent=False)
    block.__class__ = Tapped
