"""Tensors on disk for interventions, requests under them, and a plain loop to compare with."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from demur.core.interventions import (
    Intervention,
)
from demur.core.protocols import Done, Event, Request, TokenOut
from demur.core.tensors import TENSORS, TensorRef
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel

NUM_TOKENS = 12
TEXT = "Tell me a story about two foxes and an owl."

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


def prompt_of(model: LoadedModel, text: str = TEXT) -> Prompt:
    """Return a text as a model's prompt."""
    return TransformersEngine(model).render(Chat.from_text(text))


def drawn(shape: Sequence[int], *, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return random numbers, the same at each call."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def request(
    prompt: Prompt,
    intervention: Intervention | None,
    *,
    id: str = "0",
    num_tokens: int = NUM_TOKENS,
) -> Request:
    """Return a request whose reply is drawn under an intervention, or plainly."""
    return Request(id, prompt, Sampling(max_tokens=num_tokens), decide=lambda _: intervention)


def events_of(engine: TransformersEngine, requests: Sequence[Request]) -> list[Event]:
    """Run requests to their ends."""
    return list(engine.run(requests))


def tokens_of(events: Sequence[Event], id: str = "0") -> list[int]:
    """Return the tokens of a request that did not fail."""
    errors = [e.error for e in events if isinstance(e, Done) and e.id == id and e.error]
    assert not errors, errors
    return [e.token_id for e in events if isinstance(e, TokenOut) and e.id == id]


def reply(model: LoadedModel, prompt: Prompt, intervention: Intervention | None) -> list[int]:
    """Return the tokens that an engine of its own draws."""
    return tokens_of(events_of(TransformersEngine(model), [request(prompt, intervention)]))
