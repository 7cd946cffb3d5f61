"""Lets blocks of vLLM's models call an op behind their own forward, compiled or not.

torch.compile and CUDA graphs keep a registered op that states which of its arguments it changes;
Python hooks they drop without a word.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError

Behind = Callable[[Any, Tensor, Tensor], None]
"""Takes the block and what it returns, whose sum is the state: each [token, d_model]."""


_LIBRARY: Any = torch.library.Library("demur", "DEF")  # type: ignore[no-untyped-call]


def register(name: str, arguments: str, run: Callable[..., None]) -> None:
    """Register `torch.ops.demur.NAME`.

    By hand, since `torch.library.custom_op` wraps each call in Python, for ten taps 1 ms a step.

    Args:
        name: Of the op.
        arguments: As torch writes them, with what is changed.
        run: What it does; it returns nothing.
    """
    _LIBRARY.define(f"{name}({arguments}) -> ()")
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"demur::{name}", _returns_nothing, lib=_LIBRARY)


def _returns_nothing(*arguments: object) -> None:
    """Tell the compiler what an op returns."""


def blocks_of(model: nn.Module, num_blocks: int) -> nn.ModuleList:
    """Return a model's blocks.

    Raises:
        CapabilityError: They are not found.
    """
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_blocks]
    if len(found) != 1:
        raise CapabilityError(
            f"{type(model).__name__} has {len(found)} lists of {num_blocks} blocks: expected one; "
            "serve this model with the transformers engine"
        )
    return found[0]


def follow(block: nn.Module, name: str, buffers: Mapping[str, Tensor], behind: Behind) -> None:
    """Let a block call something after its own forward; its parameters keep their names.

    Args:
        block: Of a model that is not compiled yet.
        name: Of what is called.
        buffers: What it needs: the block gets each as `demur_NAME_KEY`.
        behind: Calls an op.
    """
    plain = type(block)

    class Followed(plain):  # type: ignore[misc, valid-type]
        """A block behind which something is called."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Run the block as it is, and what follows."""
            hidden, residual = plain.forward(self, *args, **kwargs)
            behind(self, hidden, residual)
            return hidden, residual

    Followed.__name__ = Followed.__qualname__ = f"Followed{plain.__name__}"
    for key, buffer in buffers.items():
        block.register_buffer(f"demur_{name}_{key}", buffer, persistent=False)
    block.__class__ = Followed
