"""Captures activations during a forward pass, pooled on the way.

Hooks on the modules that are read copy only the positions asked for; what leaves the model is
[layer, d_model] in float32 for a pooled read. Where nothing but states is wanted, the pass ends
after the deepest block that is read, and no LM head runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Prompt, SpanKind
from demur.modeling.blocks import Parts
from demur.modeling.pooling import Pooling, normalised

NUMBERS_KEPT = 2**20
"""Of all layers of a pooled read that are kept until the pass is over."""


class _StopEarlyError(Exception):
    """Ends a forward pass whose remaining blocks nobody reads."""


class Slot:
    """What is kept for one read during one forward pass over many prompts.

    Args:
        spec: The read.
        rows: For each prompt the rows [position] that the read wants of the pass's tokens, all
            prompts in one list.
    """

    def __init__(self, spec: CaptureSpec, rows: Sequence[Sequence[int]]) -> None:
        self._spec = spec
        self._counts = [len(of_prompt) for of_prompt in rows]
        self._kept: list[Tensor | None] = [None] * len(spec.layers)
        self._pooling = None if spec.pool == "none" else Pooling(spec)
        self._is_pooled = False
        self._spans = _spans(rows)
        self.rows = torch.tensor([row for of_prompt in rows for row in of_prompt])

    def take(self, index: int, states: Tensor, present: Tensor | None) -> None:
        """Keep what the read wants of a module's output: a copy, so that nothing else stays alive.

        Short prompts are pooled once the pass is over, all layers in one go: by then the calls
        would cost more than the numbers.

        Args:
            index: Which of the read's layers this is.
            states: [..., d_model], a row for each token of the pass.
            present: The rows, in ascending order, if the module saw only some of them.
        """
        flat = states.reshape(-1, states.shape[-1])
        num_numbers = len(self._kept) * sum(self._counts) * flat.shape[-1]
        self._is_pooled = self._pooling is not None and num_numbers > NUMBERS_KEPT
        picked = self._picked(flat, present)
        if self._is_pooled:
            self._kept[index] = self._pooled(picked)
        else:
            self._kept[index] = torch.cat(picked)

    def _picked(self, flat: Tensor, present: Tensor | None) -> list[Tensor]:
        """Return the states of each prompt, [position, d_model]; not all are copies."""
        if present is None and self._spans is not None:
            return [flat[span] for span in self._spans]
        rows = self.rows if present is None else torch.searchsorted(present, self.rows)
        return list(torch.split(flat.index_select(0, rows.to(flat.device)), self._counts))

    def _pooled(self, of_prompts: Sequence[Tensor]) -> Tensor:
        """Return states [..., position, d_model] of each prompt as [prompt, ..., d_model]."""
        assert self._pooling is not None
        return torch.stack([self._pooling(states) for states in of_prompts])

    def values(self) -> Values:
        """Return the read's values.

        Raises:
            DataError: The forward pass did not reach all layers of the read.
        """
        kept = [states for states in self._kept if states is not None]
        if len(kept) < len(self._kept):
            raise DataError(f"the forward pass did not reach all layers of {self._spec}")
        layers = [states.to(kept[0].device) for states in kept]
        if self._pooling is not None and not self._is_pooled:
            joined = self._pooled(torch.split(torch.stack(layers), self._counts, dim=1))
        else:
            joined = torch.stack(layers, dim=1)
        states = _finished(joined, self._spec)  # [prompt or position, layer, d_model]
        if self._spec.is_pooled:
            return states
        ends = np.cumsum(self._counts)[:-1]
        return tuple(part.swapaxes(0, 1).copy() for part in np.split(states, ends))


def _spans(rows: Sequence[Sequence[int]]) -> list[slice] | None:
    """Return each prompt's rows as a range, or None where those of one are no range."""
    ranges = [range(of_prompt[0], of_prompt[-1] + 1) for of_prompt in rows if of_prompt]
    if [list(of) for of in ranges] != [list(of_prompt) for of_prompt in rows]:
        return None
    return [slice(of.start, of.stop) for of in ranges]


class Recorder:
    """Collects what hooks see during one forward pass over many prompts.

    Args:
        prompts: What the pass reads.
        reads: What to record.
        starts: For each prompt the row of its first token among all tokens of the pass.

    Raises:
        DataError: A prompt has no such positions.
    """

    def __init__(
        self, prompts: Sequence[Prompt], reads: Sequence[Read], starts: Sequence[int]
    ) -> None:
        self._prompts = prompts
        self._reads = tuple(reads)
        self.seconds = 0.0
        """Time spent in the hooks: selecting and pooling."""
        self.present: Tensor | None = None
        """The rows, in ascending order, that modules see from now on; None for all."""
        self.slots = {
            spec: Slot(
                spec,
                [
                    [start + position for position in positions_of(prompt, spec)]
                    for prompt, start in zip(prompts, starts, strict=True)
                ],
            )
            for spec in self._reads
            if isinstance(spec, CaptureSpec)
        }

    def readings(self) -> Readings:
        """Return what was collected.

        Raises:
            DataError: A read came to nothing, since the forward pass did not reach it.
        """
        return Readings({read: self._values(read) for read in self._reads})

    def _values(self, read: Read) -> Values:
        if isinstance(read, CaptureSpec):
            return self.slots[read].values()
        return tuple(prompt.chat.last_user_text for prompt in self._prompts)


def positions_of(prompt: Prompt, spec: CaptureSpec) -> Sequence[int]:
    """Return the positions that a read wants of a prompt, in ascending order but for numbers.

    Raises:
        DataError: The prompt has no such positions.
    """
    length, positions = len(prompt), spec.positions
    if positions == "last":
        return (length - 1,)
    if positions == "all":
        return range(length)
    if isinstance(positions, tuple):
        wanted = [p + length if p < 0 else p for p in positions]
        if any(not 0 <= p < length for p in wanted):
            raise DataError(f"positions {positions} do not exist in a prompt of {length} tokens")
        return wanted
    kind: SpanKind = "reply" if positions == "reply" else "user"
    spans = prompt.spans_of(kind)
    spans = spans[-1:] if positions == "user" else spans
    wanted = [p for span in spans for p in range(span.start, span.stop)]
    if not wanted:
        raise DataError(f"the prompt has no {kind} tokens to read")
    return wanted


def _finished(states: Tensor, spec: CaptureSpec) -> Array:
    """Return kept states [..., d_model] as float32, normalised unless pooling has done so."""
    states = states.float()
    return (states if spec.pool != "none" else normalised(states, spec)).cpu().numpy()


@contextmanager
def recording(
    parts: Parts, prompts: Sequence[Prompt], reads: Sequence[Read], *, starts: Sequence[int]
) -> Iterator[Recorder]:
    """Record reads while the model runs inside the block; hooks are always removed.

    Args:
        parts: Of the model that will run.
        prompts: What it will read.
        reads: What to record.
        starts: For each prompt the row of its first token among all tokens of the pass.

    Raises:
        ConfigError: A read names a layer that the model does not have.
        DataError: A prompt has no such positions.
    """
    recorder = Recorder(prompts, reads, starts)

    def take(slot: Slot, index: int, states: Tensor) -> None:
        started = time.perf_counter()
        slot.take(index, states, recorder.present)
        recorder.seconds += time.perf_counter() - started

    with filling(parts, recorder.slots, take=take):
        yield recorder


def keep_all(slot: Slot, index: int, states: Tensor) -> None:
    """Keep what a slot wants of a module that saw all rows of the pass."""
    slot.take(index, states, None)


@contextmanager
def filling(
    parts: Parts,
    slots: Mapping[CaptureSpec, Slot],
    *,
    take: Callable[[Slot, int, Tensor], None] = keep_all,
) -> Iterator[None]:
    """Fill slots while the model runs inside the block; hooks are always removed.

    Args:
        parts: Of the model that will run.
        slots: What to keep, by read.
        take: Called with a slot, the place among its layers, and a module's output.

    Raises:
        ConfigError: A read names a layer that the model does not have.
    """
    wanted: dict[nn.Module, list[tuple[Slot, int]]] = {}
    for spec, slot in slots.items():
        for index, layer in enumerate(spec.layers):
            wanted.setdefault(parts.module(layer, spec.site), []).append((slot, index))

    def hook(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        for slot, index in wanted[module]:
            take(slot, index, states)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for module in wanted:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def leaving_after(module: nn.Module) -> Iterator[None]:
    """End the forward pass that runs inside the block once a module is done."""

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        raise _StopEarlyError

    handle = module.register_forward_hook(leave)
    try:
        yield
    except _StopEarlyError:
        return
    finally:
        handle.remove()


@torch.inference_mode()
def capture(
    parts: Parts,
    prompts: Sequence[Prompt],
    reads: Sequence[Read],
    *,
    padding_side: str = "right",
    pad_token_id: int = 0,
) -> Readings:
    """Read a batch of prompts in one forward pass, without LM head or KV cache.

    Args:
        parts: Of the model.
        prompts: One row each; a batch of equal lengths, or of one, is not padded.
        reads: What to read.
        padding_side: `left` or `right`; changes nothing but rounding.
        pad_token_id: Fills the padding.

    Raises:
        ConfigError: The padding side is unknown, or a read names a layer that does not exist.
        DataError: There are no prompts.
    """
    if padding_side not in ("left", "right"):
        raise ConfigError(f"padding_side is {padding_side!r}: expected left or right")
    if not prompts:
        raise DataError("there are no prompts to capture")
    width = max(len(prompt) for prompt in prompts)
    first = [width - len(p) if padding_side == "left" else 0 for p in prompts]
    starts = [row * width + column for row, column in enumerate(first)]
    ids: Array = np.full((len(prompts), width), pad_token_id, dtype=np.int64)
    mask: Array = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        columns = slice(first[row], first[row] + len(prompt))
        ids[row, columns] = prompt.token_ids
        mask[row, columns] = 1
    device = next(parts.body.parameters()).device
    inputs = {"input_ids": torch.from_numpy(ids).to(device)}
    if not mask.all():
        inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        inputs["position_ids"] = torch.from_numpy((mask.cumsum(1) - 1).clip(0)).to(device)
    specs = [read for read in reads if isinstance(read, CaptureSpec)]
    with recording(parts, prompts, reads, starts=starts) as recorder:
        if specs:
            with leaving_after(parts.last_read(specs)):
                parts.body(**inputs, use_cache=False)
    return recorder.readings()
