"""Reads several tokens at once, each as if it alone came next, and goes on from one of them.

All stand at the same position, under a mask that hides them from each other, so that no cache is
copied a token. The LM head sees the one that is chosen, and no other. Several sequences share a
pass, each with its own tokens.
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
from demur.modeling.caches import keep_one, side_by_side
from demur.modeling.capture import Slot, filling
from demur.modeling.load import LoadedModel

States = Mapping[CaptureSpec, Array]
"""By read, [token, layer, d_model], float32."""


@dataclass(frozen=True, eq=False)
class Try:
    """Several tokens that might come next after what was read, of which one is taken."""

    cache: DynamicCache
    """Of what came before; it is not changed."""
    token_ids: Sequence[int]
    """All at the same position; none attends to another."""
    reads: Iterable[CaptureSpec]
    """What to keep of each."""
    choose: Callable[[States], int]
    """Says from the states which token is taken, before the LM head runs."""


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
def try_tokens(loaded: LoadedModel, tries: Sequence[Try]) -> list[Tried]:
    """Read several tokens after each of some sequences, all in one pass, and go on from one each.

    Sequences stand right-aligned, with padding that a mask hides; one alone has none.

    Args:
        loaded: The model.
        tries: As many tokens after each sequence.
    """
    lengths = [of.cache.get_seq_length() for of in tries]
    (count,) = {len(of.token_ids) for of in tries}
    joint = side_by_side([of.cache for of in tries])
    choice = _Choice(tries, count)
    head, device = loaded.model.get_output_embeddings(), loaded.device
    mask = None  # one token of one sequence: it is read as in plain decoding
    if count > 1 or len(tries) > 1:
        dtype = loaded.model.dtype
        mask = apart(loaded.model.config, lengths, count, dtype=dtype, device=device)
    with filling(loaded.parts, choice.slots), head.register_forward_pre_hook(choice.make):
        output = loaded.model(
            input_ids=torch.tensor([list(of.token_ids) for of in tries], device=device),
            attention_mask=mask,
            position_ids=torch.tensor(lengths, device=device)[:, None].expand(-1, count),
            past_key_values=joint,
            use_cache=True,
        )
    return [
        Tried(
            index,
            choice.states[row],
            output.logits[row, -1].float(),
            keep_one(joint, row=row, length=length, num_tried=count, index=index),
        )
        for row, (index, length) in enumerate(zip(choice.indices, lengths, strict=True))
    ]


class _Choice:
    """Chooses tokens as soon as the body has run, and shows the LM head nothing else."""

    def __init__(self, tries: Sequence[Try], count: int) -> None:
        self._tries = tries
        self._count = count
        self._rows: dict[CaptureSpec, list[int]] = {}
        for row, of in enumerate(tries):
            for read in of.reads:
                self._rows.setdefault(read, []).append(row)
        self.slots = {
            read: Slot(at_last(read), [[row * count + n] for row in rows for n in range(count)])
            for read, rows in self._rows.items()
        }
        self.states: list[dict[CaptureSpec, Array]] = [{} for _ in tries]
        self.indices: list[int] = []

    def make(self, _head: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Choose, as a hook before the head, whose input is [sequence, token, d_model]."""
        for read, rows in self._rows.items():
            values = np.asarray(self.slots[read].values())
            for place, row in enumerate(rows):
                self.states[row][read] = values[place * self._count : (place + 1) * self._count]
        self.indices = [
            of.choose(states) for of, states in zip(self._tries, self.states, strict=True)
        ]
        # An index, since the head copies its whole weight for a slice: see `modeling.last_logits`.
        every = torch.arange(len(self._tries), device=inputs[0].device)
        chosen = torch.tensor(self.indices, device=inputs[0].device)
        return (inputs[0][every, chosen][:, None], *inputs[1:])


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
    config: Any,
    lengths: Sequence[int],
    num_tokens: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | dict[str, Tensor]:
    """Return a mask under which each new token sees what came before, and itself.

    Args:
        config: Of the model that reads them.
        lengths: Of what came before, by sequence; shorter ones have padding on the left.
        num_tokens: The new ones of each sequence.
        dtype: Of the model.
        device: Of the model.
    """
    width = max(lengths)

    def allowed(window: int | None) -> Tensor:
        before = torch.ones(len(lengths), num_tokens, width, dtype=torch.bool)
        for row, length in enumerate(lengths):
            seen = length if window is None else min(length, window - 1)
            before[row, :, : width - seen] = False
        itself = torch.eye(num_tokens, dtype=torch.bool).expand(len(lengths), -1, -1)
        return torch.cat([before, itself], 2)

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
        allowed: What a token may attend to, [sequence, token, column]; it is told the width of the
            window that a kind of layer has, or None.
        dtype: Of the model.
        device: Of the model.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None)

    def mask(width: int | None) -> Tensor:
        open_ = allowed(width)
        closed = torch.zeros(open_.shape, dtype=dtype)
        return closed.masked_fill(~open_, torch.finfo(dtype).min)[:, None].to(device)

    if not kinds:
        return mask(window)
    masks = {kind: mask(window if "sliding" in kind else None) for kind in kinds}
    return masks if len(masks) > 1 or "sliding_attention" in masks else masks.popitem()[1]
