"""Reads many prompts in one forward pass without padding.

All tokens of a pack go through one matrix product; attention stays within each prompt. The keys and
values of what all prompts share at their start are computed once. Only the blocks up to the deepest
one that is read run, and of that one only its keys, its values and the rows that are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Prompt
from demur.modeling.blocks import Parts
from demur.modeling.capture import Recorder, leaving_after, recording
from demur.modeling.packed_attention import KeysValues, PackedAttention, attending
from demur.modeling.packing import Pack, Run, shared_prefix

WORTH_NARROWING = 0.5
"""Share of the rows that are read up to which the last block runs on them alone."""


class PackedCapture:
    """Captures packs of prompts.

    Args:
        parts: Of the model, which is never changed.
        reads: What to read, a capture at least.
        prompts: All that will be read: what they share at the start is read once, here.

    Raises:
        CapabilityError: The model cannot be run in this way.
    """

    def __init__(self, parts: Parts, reads: Sequence[Read], prompts: Sequence[Prompt]) -> None:
        self._parts = parts
        self._reads = tuple(reads)
        self._specs = [read for read in reads if isinstance(read, CaptureSpec)]
        self._device = next(parts.body.parameters()).device
        self._deepest = parts.deepest(self._specs)
        self._prefix: Mapping[nn.Module, KeysValues] = {}
        prefix = shared_prefix(prompts, self._specs)
        if prefix:
            self._prefix = self._read_prefix(prefix)
        self.prefix_length = len(prefix)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt]) -> Readings:
        """Return the readings of prompts, in their order.

        Raises:
            CapabilityError: The model cannot be run in this way.
        """
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        pack = Pack(tuple(prompts[row] for row in order), self.prefix_length)
        attention = PackedAttention(pack.runs(), self._prefix)
        inputs = pack.inputs(self._device)
        with (
            recording(self._parts, pack.prompts, self._reads, starts=pack.starts) as recorder,
            leaving_after(self._parts.last_read(self._specs)),
            self._narrowing(pack, recorder, attention, num_rows=inputs["input_ids"].shape[1]),
        ):
            self._run(attention, inputs)
        self._require_calls(attention)
        return recorder.readings().take(np.argsort(order))

    def _read_prefix(self, token_ids: tuple[int, ...]) -> Mapping[nn.Module, KeysValues]:
        length = len(token_ids)
        attention = PackedAttention([Run(0, 0, 1, length, range(length))], {}, keeps=True)
        ids = torch.tensor([token_ids], device=self._device)
        positions = torch.arange(length, device=self._device)[None]
        with torch.inference_mode(), leaving_after(self._parts.blocks[self._deepest]):
            self._run(attention, {"input_ids": ids, "position_ids": positions})
        self._require_calls(attention)
        return attention.kept

    def _run(self, attention: PackedAttention, inputs: Mapping[str, Tensor]) -> None:
        with attending(self._parts.body, attention):
            self._parts.body(**inputs, use_cache=False)

    def _require_calls(self, attention: PackedAttention) -> None:
        if attention.num_calls <= self._deepest:
            raise CapabilityError("a block does not use transformers' attention")

    @contextmanager
    def _narrowing(
        self, pack: Pack, recorder: Recorder, attention: PackedAttention, *, num_rows: int
    ) -> Iterator[None]:
        """Let only the rows that are read ask in the deepest block, and go through the rest of it.

        Its keys and values are those of all tokens. The pass ends with it.
        """
        block, read_there = self._parts.blocks[self._deepest], self._read_in_deepest(recorder)
        if len(read_there) > WORTH_NARROWING * num_rows:
            yield
            return
        rows = read_there.to(self._device)
        entered = False

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal entered
            if entered:
                return
            entered = True
            with attention.holding():
                block(*args, **kwargs)
            recorder.present = read_there
            attention.runs = pack.runs(read_there.tolist())
            few = _only(rows, num_rows, (args, kwargs))
            output = block(*few[0], **few[1])
            self._parts.final_norm(output if isinstance(output, Tensor) else output[0])

        handle = block.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _read_in_deepest(self, recorder: Recorder) -> Tensor:
        """Return the rows that are read of the deepest block, in ascending order."""
        slots = [
            slot.rows
            for spec, slot in recorder.slots.items()
            if self._parts.deepest([spec]) == self._deepest
        ]
        return torch.tensor(sorted({row for rows in slots for row in rows.tolist()}))


def _only(rows: Tensor, num_rows: int, value: Any) -> Any:
    """Return a block's inputs for some rows: of each tensor that has an entry for every token."""
    if isinstance(value, Tensor):
        if value.ndim > 1 and value.shape[1] == num_rows:
            return value.index_select(1, rows)
        return value.index_select(0, rows) if value.shape[:1] == (num_rows,) else value
    if isinstance(value, Mapping):
        return {name: _only(rows, num_rows, entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_only(rows, num_rows, entry) for entry in value)
    return value
