# ruff: noqa: PLR0917  # an op takes its arguments by place
"""Taps: what computes read-outs inside vLLM's own forward pass.

A tapped block calls a registered custom op on its output. torch.compile and CUDA graphs keep such
an op, since it states which of its arguments it changes; Python hooks they drop without a word. The
sum of what a block returns is made outside of the op: the compiler then fuses what comes before and
after as it does without a tap, and rounds alike. The last column of the buffer counts the taps that
ran for a token, so that one that was lost is seen.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError
from demur.core.readings import Array
from demur.engines._columns import Columns
from demur.modeling.pooling import RMS_EPSILON


@torch.library.custom_op("demur::tap", mutates_args=("scores",))
def tap(
    state: Tensor, weights: Tensor, is_rms: Tensor, scores: Tensor, wanted: Tensor, first: bool
) -> None:
    """Add a block's products to the columns of the tokens of a step.

    Args:
        state: After the block, [token, d_model].
        weights: [d_model, column], float32.
        is_rms: [column], true where states are divided by their root mean square.
        scores: [most tokens, column + 1], float32.
        wanted: [], bool, on the CPU: false leaves the buffer as it is.
        first: This is the lowest tap: what the buffer held is over.
    """
    if not wanted:
        return
    num_tokens = state.shape[0]
    state = state.float()
    products = state @ weights
    scale = torch.rsqrt(state.square().mean(-1, keepdim=True) + RMS_EPSILON)
    products = torch.where(is_rms, products * scale, products)
    if first:
        scores[:num_tokens, :-1] = products
        scores[:num_tokens, -1] = 1
    else:
        scores[:num_tokens, :-1] += products
        scores[:num_tokens, -1] += 1


@tap.register_fake
def _(
    state: Tensor, weights: Tensor, is_rms: Tensor, scores: Tensor, wanted: Tensor, first: bool
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
        self.columns = columns
        self._scores = torch.full((max_tokens, len(columns) + 1), torch.nan, device=device)
        # A captured graph computes always: it would keep what the flag was when it was captured.
        self._can_rest = device.type == "cpu"
        self._wanted = torch.tensor(True)
        is_rms = torch.from_numpy(columns.is_rms).to(device)
        for layer in columns.layers:
            buffers = {
                "weights": torch.from_numpy(columns.weights_at(layer)).to(device),
                "is_rms": is_rms,
                "scores": self._scores,
                "wanted": self._wanted,
            }
            _tap_block(blocks[layer], buffers, layer == columns.layers[0])

    def values(self, rows: slice) -> Array:
        """Return the columns of some tokens of the last step, [token, column], float64.

        A token that did not pass all taps has NaN.
        """
        found = self._scores[rows].cpu().numpy().astype(np.float64)
        found[found[:, -1] != len(self.columns.layers)] = np.nan
        values: Array = found[:, :-1]
        return values

    def begin(self, *, is_read: bool) -> None:
        """Forget the last step, so that taps that do not run leave no number behind.

        Args:
            is_read: The values of the coming step will be asked for.
        """
        self._wanted.fill_(is_read or not self._can_rest)
        if is_read:
            self._scores.fill_(torch.nan)


def _blocks(model: nn.Module, num_blocks: int) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_blocks]
    if len(found) != 1:
        raise CapabilityError(
            f"{type(model).__name__} has {len(found)} lists of {num_blocks} blocks: expected one; "
            "serve this model with the transformers engine"
        )
    return found[0]


def _tap_block(block: nn.Module, buffers: dict[str, Tensor], first: bool) -> None:
    """Let a block call the op after its own forward; its parameters keep their names."""
    plain = type(block)

    class Tapped(plain):  # type: ignore[misc, valid-type]
        """A block whose output is read."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Run the block as it is, and read what it returns."""
            hidden, residual = plain.forward(self, *args, **kwargs)
            torch.ops.demur.tap(
                hidden + residual,
                self.demur_weights,
                self.demur_is_rms,
                self.demur_scores,
                self.demur_wanted,
                first,
            )
            return hidden, residual

    Tapped.__name__ = Tapped.__qualname__ = f"Tapped{plain.__name__}"
    for name, buffer in buffers.items():
        block.register_buffer(f"demur_{name}", buffer, persistent=False)
    block.__class__ = Tapped
