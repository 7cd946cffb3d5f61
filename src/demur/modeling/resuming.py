"""Reads a prompt again from a block on, where what that block was given was stored.

A model's forward pass calls its blocks one after another, each with the states so far and with
things that do not depend on them: masks, positions, the cache. Both are kept while a prompt is read
for the first time; the upper blocks can then be called once more, by themselves.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from demur.modeling.blocks import Parts
from demur.modeling.caches import fork


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block was given beside the states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trail:
    """What was kept of a pass over one prompt."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    """The states [1, position, d_model] that went into a block, by block."""
    calls: dict[int, _Call] = field(default_factory=dict)
    """By block."""


@contextmanager
def keeping(parts: Parts, layers: Sequence[int]) -> Iterator[Trail]:
    """Keep what it takes to go on from some blocks while the model runs; hooks are always removed.

    Args:
        parts: Of the model that will run.
        layers: 0-based blocks whose input is copied.

    Raises:
        ConfigError: There is no such block.
    """
    trail = Trail()
    wanted = {parts.layer(layer) for layer in layers}
    of_blocks = {
        parts.blocks[number]: number
        for number in range(min(wanted, default=len(parts.blocks)), len(parts.blocks))
    }

    def keep(block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        number = of_blocks[block]
        states, call = _parted(positional, named)
        if number in wanted:
            trail.inputs[number] = states.clone()
        trail.calls[number] = call

    with ExitStack() as stack:
        for block in of_blocks:
            stack.enter_context(block.register_forward_pre_hook(keep, with_kwargs=True))
        yield trail


def _parted(positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, _Call]:
    """Return the states that a block is called with, and the rest."""
    if positional:
        return positional[0], _Call(positional[1:], named)
    rest = dict(named)
    return rest.pop("hidden_states"), _Call((), rest)


@torch.inference_mode()
def read_from(
    parts: Parts, trail: Trail, layer: int, cache: DynamicCache
) -> tuple[Tensor, DynamicCache]:
    """Run the blocks from one on over a prompt that was read.

    Args:
        parts: Of the model.
        trail: Kept while it was read.
        layer: 0-based block whose input was kept.
        cache: Of that pass; it is not changed.

    Returns:
        The normed state of the last token, [1, 1, d_model], and the cache of all tokens; what it
        holds of the blocks below is that of the first pass.
    """
    longer = fork(cache)
    del longer.layers[layer:]  # grows again as the blocks fill it
    states = trail.inputs[layer]
    for number in range(layer, len(parts.blocks)):
        call = trail.calls[number]
        output = parts.blocks[number](
            states,
            *(longer if value is cache else value for value in call.positional),
            **{name: longer if value is cache else value for name, value in call.named.items()},
        )
        states = output if isinstance(output, Tensor) else output[0]
    normed: Tensor = parts.final_norm(states[:, -1:])
    return normed, longer
