"""Reads several tokens at once, each as if it alone came next, and goes on from one of them.

All stand at the same position, under a mask that hides them from each other, so that no cache is
copied a token. The LM head sees the one that is chosen, and no other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.modeling.caches import fork, keep_one
from demur.modeling.capture import Slot, filling
from demur.modeling.load import LoadedModel

States = Mapping[CaptureSpec, Array]
"""By read, [token, layer, d_model], float32."""


@dataclass(frozen=True, eq=False)
class Tried:
    """What came of several tokens, and where the chosen one leads."""

    index: int
    """Of the chosen token."""
    states: States
    """Of all tokens."""
    logits: Tensor
    """Of what comes after the chosen token, [vocabulary], float32."""
    cache: DynamicCache
    """Of what came before, and the chosen token."""


@torch.inference_mode()
def try_tokens(
    loaded: LoadedModel,
    cache: DynamicCache,
    token_ids: Sequence[int],
    reads: Iterable[CaptureSpec],
    choose: Callable[[States], int],
) -> Tried:
    """Read several tokens in one pass, and go on from one.

    Args:
        loaded: The model.
        cache: Of what came before; it is not changed.
        token_ids: All at the same position; none attends to another.
        reads: What to keep of each.
        choose: Says from the states which token is taken, before the LM head runs.
    """
    length, longer = cache.get_seq_length(), fork(cache)
    rows = [[index] for index in range(len(token_ids))]
    slots = {read: Slot(at_last(read), rows) for read in reads}
    choice = _Choice(slots, choose)
    head, device = loaded.model.get_output_embeddings(), loaded.device
    mask = None  # one token has no others to be hidden from: it is read as in plain decoding
    if len(token_ids) > 1:
        dtype = loaded.model.dtype
        mask = apart(loaded.model.config, length, len(token_ids), dtype=dtype, device=device)
    with filling(loaded.parts, slots), head.register_forward_pre_hook(choice.make):
        output = loaded.model(
            input_ids=torch.tensor([token_ids], device=device),
            attention_mask=mask,
            position_ids=torch.full((1, len(token_ids)), length, device=device),
            past_key_values=longer,
            use_cache=True,
        )
    kept = keep_one(longer, length=length, index=choice.index)
    return Tried(choice.index, choice.states, output.logits[0, -1].float(), kept)


class _Choice:
    """Chooses a token as soon as the body has run, and shows the LM head nothing else."""

    def __init__(self, slots: Mapping[CaptureSpec, Slot], choose: Callable[[States], int]) -> None:
        self._slots = slots
        self._choose = choose
        self.states: States = {}
        self.index = -1

    def make(self, _head: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Choose, as a hook before the head, whose input is [1, token, d_model]."""
        self.states = {read: np.asarray(slot.values()) for read, slot in self._slots.items()}
        self.index = self._choose(self.states)
        # An index, since the head copies its whole weight for a slice: see `modeling.last_logits`.
        return (inputs[0][:, [self.index]], *inputs[1:])


def read_on(
    loaded: LoadedModel,
    token_ids: Sequence[int],
    cache: DynamicCache,
    reads: Iterable[CaptureSpec],
) -> tuple[Tensor, dict[CaptureSpec, Array]]:
    """Read tokens one after another, in one pass.

    Args:
        loaded: The model.
        token_ids: What is read.
        cache: Of what came before; it grows by the tokens.
        reads: What to keep of the last one.

    Returns:
        The logits [vocabulary] of the last token, float32, and its states [layer, d_model] by read.
    """
    slots = {read: Slot(at_last(read), [[len(token_ids) - 1]]) for read in reads}
    with filling(loaded.parts, slots):
        logits = loaded.last_logits(token_ids, cache=cache).float()
    return logits, {read: np.asarray(slot.values())[0] for read, slot in slots.items()}


def at_last(read: CaptureSpec) -> CaptureSpec:
    """Return a read of a reply's tokens as one of a single token: [token, layer, d_model]."""
    return replace(read, positions="last", pool="none")


def apart(
    config: Any, length: int, num_tokens: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor | dict[str, Tensor]:
    """Return a mask under which each new token sees what came before, and itself.

    Args:
        config: Of the model that reads them.
        length: Of what came before.
        num_tokens: The new ones.
        dtype: Of the model.
        device: Of the model.
    """

    def allowed(window: int | None) -> Tensor:
        before = torch.ones(num_tokens, length, dtype=torch.bool)
        if window is not None:
            before[:, : max(0, length - window + 1)] = False
        return torch.cat([before, torch.eye(num_tokens, dtype=torch.bool)], 1)

    return masks_of(config, allowed, dtype=dtype, device=device)


def masks_of(
    config: Any,
    allowed: Callable[[int | None], Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | dict[str, Tensor]:
    """Return additive masks as a model takes them: one, or one for each kind of its layers.

    Args:
        config: Of the model.
        allowed: What a token may attend to, [token, column]; it is told the width of the window
            that a kind of layer has, or None.
        dtype: Of the model.
        device: Of the model.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None)

    def mask(width: int | None) -> Tensor:
        open_ = allowed(width)
        closed = torch.zeros(open_.shape, dtype=dtype)
        return closed.masked_fill(~open_, torch.finfo(dtype).min)[None, None].to(device)

    if not kinds:
        return mask(window)
    masks = {kind: mask(window if "sliding" in kind else None) for kind in kinds}
    return masks if len(masks) > 1 or "sliding_attention" in masks else masks.popitem()[1]
