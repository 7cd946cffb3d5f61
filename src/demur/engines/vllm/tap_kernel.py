"""A tap as one kernel of a GPU: a step of ten taps would else be forty, some 2 µs each."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 32
"""Which it is made for; a matrix product is better for more."""
_TILE = 8192
"""Weights that a program holds at a time."""
_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # noqa: PLR0917
    state,
    weights,
    products,
    norms,
    stride,
    d_model: tl.constexpr,
    num_columns: tl.constexpr,
    padded_columns: tl.constexpr,
    block: tl.constexpr,
):
    """Read one token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded_columns)
    totals = tl.zeros((padded_columns,), tl.float32)
    squares = tl.zeros((block,), tl.float32)
    for start in range(0, d_model, block):
        at = start + tl.arange(0, block)
        values = tl.load(state + token * stride + at, mask=at < d_model, other=0.0).to(tl.float32)
        held = tl.load(
            weights + at[:, None] * num_columns + column[None, :],
            mask=(at[:, None] < d_model) & (column[None, :] < num_columns),
            other=0.0,
        )
        totals += tl.sum(values[:, None] * held, axis=0)
        squares += values * values
    tl.store(products + token * num_columns + column, totals, mask=column < num_columns)
    tl.store(norms + token, tl.sqrt(tl.sum(squares, axis=0)))


def tap_all(state: Tensor, weights: Tensor, products: Tensor, norms: Tensor) -> None:
    """Write the products and the norms of all tokens of a step.

    Args:
        state: [token, d_model], of any floating dtype.
        weights: [d_model, column], float32, of at most MOST_COLUMNS columns.
        products: [most tokens, column], float32, contiguous.
        norms: [most tokens], float32, contiguous.
    """
    read = state if state.stride(1) == 1 else state.contiguous()
    d_model, num_columns = weights.shape
    padded = triton.next_power_of_2(num_columns)
    block = min(_TILE // padded, triton.next_power_of_2(d_model))
    _kernel[(len(read),)](
        read,
        weights,
        products,
        norms,
        read.stride(0),
        d_model,
        num_columns,
        padded,
        block,
        num_warps=_WARPS,
    )
