"""Tensors on disk for interventions, and a plain loop to compare engines with."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from demur.core.tensors import TENSORS, TensorRef
from demur.core.types import Prompt
from demur.modeling.load import LoadedModel

Edit = Callable[[Tensor], Tensor]
"""Takes the states [position, d_model] after a block, and returns others."""


def stored(folder: Path, key: str, tensor: Tensor) -> TensorRef:
    """Write a tensor as an artifact would hold it."""
    target = folder / key
    target.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous()}, target / TENSORS)
    return TensorRef.of(target, key)


@contextmanager
def edited(model: LoadedModel, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Edit the states after some blocks of a pass over one sequence."""

    def hook_of(edit: Edit) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, Tensor):
                return edit(output[0])[None]
            return (edit(output[0][0])[None], *output[1:])

        return hook

    handles = [
        model.parts.blocks[layer].register_forward_hook(hook_of(edit))
        for layer, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def plain_greedy(
    model: LoadedModel, prompt: Prompt, num_tokens: int, *, head: Tensor | None = None
) -> list[int]:
    """Decode greedily without a cache, by reading everything anew in each step."""
    ids = list(prompt.token_ids)
    for _ in range(num_tokens):
        logits = next_logits(model, ids, head=head)
        ids.append(int(torch.argmax(logits)))
        if ids[-1] in model.end_token_ids:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
def next_logits(model: LoadedModel, ids: Sequence[int], *, head: Tensor | None = None) -> Tensor:
    """Return the logits [vocabulary] after some tokens."""
    inputs = torch.tensor([list(ids)])
    if head is not None:
        states: Tensor = model.parts.body(inputs, use_cache=False)[0]
        return states[0, -1] @ head.T
    logits: Tensor = model.model(inputs, use_cache=False).logits[0, -1]
    return logits


def state_hash(model: LoadedModel) -> str:
    """Return a hash of all weights and of the hooks that are set."""
    digest = hashlib.sha256()
    for name, tensor in model.model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    for module in model.model.modules():
        digest.update(repr((len(module._forward_hooks), len(module._forward_pre_hooks))).encode())
    return digest.hexdigest()
