"""Captures activations during a forward pass, pooled on the way.

Hooks on the modules that are read copy only the positions asked for; what leaves the model is
[layer, d_model] in float32 for a pooled read. Where nothing but states is wanted, the pass ends
after the deepest block that is read, and no LM head runs.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Prompt
from demur.modeling.blocks import Parts

Columns = int | slice | Tensor
"""Of one row of a batch: the last position, a run of them, or any."""


class _StopEarlyError(Exception):
    """Ends a forward pass whose remaining blocks nobody reads."""


class Slot:
    """What is kept for one read during one forward pass over a (padded) batch.

    Args:
        spec: The read.
        columns: For each prompt the columns that the read wants of its row.
    """

    def __init__(self, spec: CaptureSpec, columns: Sequence[Columns]) -> None:
        self._spec = spec
        self._columns = tuple(columns)
        self._kept: list[list[Tensor | None]] = [[None] * len(spec.layers) for _ in columns]

    def take(self, index: int, states: Tensor) -> None:
        """Keep what the read wants of a module's output.

        Args:
            index: Which of the read's layers this is.
            states: [prompt, column, d_model].
        """
        for row, columns in enumerate(self._columns):
            picked = states[row, columns]  # [position, d_model], or [d_model] of the last
            if self._spec.pool != "none":
                self._kept[row][index] = _pooled(picked.float(), self._spec)
            else:  # a copy: a view would keep the whole activation of the block alive
                self._kept[row][index] = picked.clone()

    def values(self) -> Values:
        """Return the read's values.

        Raises:
            DataError: The forward pass did not reach all layers of the read.
        """
        kept = [state for row in self._kept for state in row if state is not None]
        num_layers = len(self._spec.layers)
        if len(kept) < num_layers * len(self._kept):
            raise DataError(f"the forward pass did not reach all layers of {self._spec}")
        if self._spec.is_pooled:
            joined = torch.cat(kept).view(len(self._kept), num_layers, -1)
            return _finished(joined, self._spec)  # [prompt, layer, d_model]
        rows = [kept[start : start + num_layers] for start in range(0, len(kept), num_layers)]
        return tuple(_finished(torch.stack(row), self._spec) for row in rows)


class Recorder:
    """Collects what hooks see during one forward pass over a (padded) batch.

    Args:
        prompts: The rows of the batch.
        reads: What to record.
        first_columns: For each prompt the column of its first token: 0 unless padded on the left.

    Raises:
        DataError: A prompt has no such positions.
    """

    def __init__(
        self, prompts: Sequence[Prompt], reads: Sequence[Read], first_columns: Sequence[int]
    ) -> None:
        self._prompts = prompts
        self._reads = tuple(reads)
        self.seconds = 0.0
        """Time spent in the hooks: selecting and pooling."""
        self.slots = {
            spec: Slot(
                spec,
                [
                    column_selection(prompt, spec, first)
                    for prompt, first in zip(prompts, first_columns, strict=True)
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


def column_selection(prompt: Prompt, spec: CaptureSpec, first_column: int) -> Columns:
    """Return the columns that a read wants of a prompt's row; a number for the last position.

    Raises:
        DataError: The prompt has no such positions.
    """
    length, positions = len(prompt), spec.positions
    if positions == "last":
        return first_column + length - 1
    if positions == "all":
        return slice(first_column, first_column + length)
    if isinstance(positions, tuple):
        wanted = [p + length if p < 0 else p for p in positions]
        if any(not 0 <= p < length for p in wanted):
            raise DataError(f"positions {positions} do not exist in a prompt of {length} tokens")
    else:
        spans = prompt.spans_of("user")
        spans = spans[-1:] if positions == "user" else spans
        wanted = [p for span in spans for p in range(span.start, span.stop)]
        if not wanted:
            raise DataError("the prompt has no user tokens to read")
    return torch.tensor(wanted) + first_column


def _pooled(states: Tensor, spec: CaptureSpec) -> Tensor:
    """Return the normalised states [position, d_model], float32, pooled to [d_model]."""
    states = _normalised(states.reshape(-1, states.shape[-1]), spec)
    return states.mean(0) if spec.pool == "mean" else states.amax(0)


def _finished(states: Tensor, spec: CaptureSpec) -> Array:
    """Return kept states [..., d_model] as float32, normalised unless pooling has done so."""
    states = states.float()
    return (states if spec.pool != "none" else _normalised(states, spec)).cpu().numpy()


def _normalised(states: Tensor, spec: CaptureSpec) -> Tensor:
    if spec.normalise == "none":
        return states
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-12)


@contextmanager
def recording(
    parts: Parts,
    prompts: Sequence[Prompt],
    reads: Sequence[Read],
    *,
    first_columns: Sequence[int] | None = None,
    stop_early: bool = False,
) -> Iterator[Recorder]:
    """Record reads while the model runs inside the block; hooks are always removed.

    Args:
        parts: Of the model that will run.
        prompts: The rows of the batch.
        reads: What to record.
        first_columns: For each row the column of its first token; None means 0.
        stop_early: Leave the forward pass after the deepest block that is read.

    Raises:
        ConfigError: A read names a layer that the model does not have.
        DataError: A prompt has no such positions.
    """
    recorder = Recorder(prompts, reads, first_columns or [0] * len(prompts))
    wanted: dict[nn.Module, list[tuple[Slot, int]]] = {}
    for spec, slot in recorder.slots.items():
        for index, layer in enumerate(spec.layers):
            wanted.setdefault(parts.module(layer, spec.site), []).append((slot, index))
    deepest = _deepest(parts, list(recorder.slots)) if stop_early and wanted else None

    def hook(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        started = time.perf_counter()
        states = output if isinstance(output, Tensor) else output[0]
        for slot, index in wanted[module]:
            slot.take(index, states)
        recorder.seconds += time.perf_counter() - started

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        raise _StopEarlyError

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for module in wanted:
            handles.append(module.register_forward_hook(hook))
        if deepest is not None:
            handles.append(deepest.register_forward_hook(leave))
        yield recorder
    except _StopEarlyError:
        return
    finally:
        for handle in handles:
            handle.remove()


def _deepest(parts: Parts, specs: Sequence[CaptureSpec]) -> nn.Module:
    """Return the last block, or the final norm, that a read needs: the pass may end after it."""
    if any(spec.site == "final_norm" for spec in specs):
        return parts.final_norm
    return parts.blocks[max(parts.layer(layer) for spec in specs for layer in spec.layers)]


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
    needs_pass = any(isinstance(read, CaptureSpec) for read in reads)
    with recording(parts, prompts, reads, first_columns=first, stop_early=True) as recorder:
        if needs_pass:
            parts.body(**inputs, use_cache=False)
    return recorder.readings()
