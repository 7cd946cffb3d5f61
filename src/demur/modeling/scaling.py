"""A model with the weight matrices of some blocks multiplied by a factor, beside the model itself.

Blocks are found by structure: whatever the projections of attention and MLP are called, they are
the weights of a block with two dimensions or more; norms and biases have one. The scaled model
shares every other weight with the given one, which is read and never written, so that there is
nothing to restore, whatever goes wrong.
"""

import copy
import math
from collections.abc import Collection
from dataclasses import replace

from torch import nn

from demur.core.errors import ConfigError
from demur.modeling.blocks import find_parts
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel


def scaled(loaded: LoadedModel, layers: Collection[int], factor: float) -> LoadedModel:
    """Return a model whose blocks have their weight matrices multiplied.

    It takes memory for the scaled matrices only, and has an identity of its own.

    Args:
        loaded: The model; it is never changed.
        layers: 0-based blocks; negative ones count from the end; none scales nothing.
        factor: Over 0; 1 gives a model that computes the same, bit for bit.

    Raises:
        ConfigError: There is no such block, or the factor is out of range.

    Paper: Li et al., Safety Layers in Aligned Large Language Models (ICLR 2025), arXiv 2408.17003,
    the scaling of the weights of a range of layers.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"factor is {factor}: expected over 0, and finite")
    chosen = {loaded.parts.layer(layer) for layer in layers}
    twin = _sharing_weights(loaded.model)
    parts = find_parts(twin)
    for layer in chosen:
        for module in parts.blocks[layer].modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.ndim > 1:
                    _put(module, name, weight, factor)
    name = loaded.model_id.name
    return replace(
        loaded,
        model=twin,
        parts=parts,
        model_id=identify(twin, loaded.tokenizer, name=name),
        beside={},
    )


def _put(module: nn.Module, name: str, weight: nn.Parameter, factor: float) -> None:
    setattr(module, name, nn.Parameter(weight.detach() * factor, requires_grad=False))


def _sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy of the modules of a model that holds the very same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
