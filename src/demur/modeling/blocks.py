"""Finds the parts of a decoder by structure, never by the names of models.

The blocks are the longest run of equal modules of the length that the configuration states; the
final norm is what their parent registers after them; attention is the sub-module that takes an
attention mask, and the MLP the other one with weight matrices.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from demur.core.errors import CapabilityError, ConfigError
from demur.core.reads import CaptureSpec, Site


@dataclass(frozen=True)
class Parts:
    """The modules of a causal language model that demur reads."""

    body: nn.Module
    """What runs the blocks: token ids in, normed states out."""
    blocks: tuple[nn.Module, ...]
    final_norm: nn.Module
    d_model: int

    def layer(self, layer: int) -> int:
        """Return a layer as a number from 0.

        Raises:
            ConfigError: There is no such block.
        """
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise ConfigError(
                f"layer {layer} does not exist: the model has blocks 0 to {len(self.blocks) - 1}"
            )
        return layer % len(self.blocks)

    def module(self, layer: int, site: Site) -> nn.Module:
        """Return the module whose output is the activation of a site.

        Raises:
            CapabilityError: The block has no such single part.
            ConfigError: There is no such block.
        """
        if site == "final_norm":
            return self.final_norm
        block = self.blocks[self.layer(layer)]
        return block if site == "block_out" else _inner(block, site)

    def deepest(self, specs: Sequence[CaptureSpec]) -> int:
        """Return the last block that reads need; all of them for the final norm.

        Raises:
            ConfigError: There is no such block.
        """
        if any(spec.site == "final_norm" for spec in specs):
            return len(self.blocks) - 1
        return max(self.layer(layer) for spec in specs for layer in spec.layers)

    def last_read(self, specs: Sequence[CaptureSpec]) -> nn.Module:
        """Return the module after which a forward pass may end: a block or the final norm."""
        if any(spec.site == "final_norm" for spec in specs):
            return self.final_norm
        return self.blocks[self.deepest(specs)]


def find_parts(model: nn.Module) -> Parts:
    """Find the parts of a causal language model.

    Args:
        model: A transformers model with a `config`.

    Raises:
        CapabilityError: No stack of blocks, or no norm after it, was found.
    """
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    num_blocks = config.num_hidden_layers
    candidates = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_blocks
        and all(_takes_hidden_states(block) for block in module)
    ]
    if not candidates:
        raise CapabilityError(
            f"no stack of {num_blocks} decoder blocks was found in {type(model).__name__}: "
            "demur needs a decoder whose blocks stand in one list"
        )
    path, stack = max(candidates, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    body = model.get_submodule(path.rpartition(".")[0])
    children = list(body.children())
    after = [child for child in children[children.index(stack) + 1 :] if _is_norm(child)]
    if not after:
        raise CapabilityError(f"no norm follows the blocks of {type(model).__name__}")
    return Parts(body, tuple(stack), after[0], config.hidden_size)


def _takes_hidden_states(block: nn.Module) -> bool:
    return "hidden_states" in inspect.signature(block.forward).parameters


def _is_norm(module: nn.Module) -> bool:
    shapes = [parameter.ndim for parameter in module.parameters()]
    return bool(shapes) and max(shapes) == 1 and not list(module.children())


def _inner(block: nn.Module, site: Site) -> nn.Module:
    with_weights = [
        child for child in block.children() if any(p.ndim > 1 for p in child.parameters())
    ]
    attends = [
        m for m in with_weights if "attention_mask" in inspect.signature(m.forward).parameters
    ]
    found = attends if site == "attn_out" else [m for m in with_weights if m not in attends]
    if len(found) != 1:
        raise CapabilityError(
            f"{site} needs one such part in a block, found {len(found)} in {type(block).__name__}: "
            "read block_out instead"
        )
    return found[0]
