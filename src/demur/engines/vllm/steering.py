# ruff: noqa: PLR0917  # an op takes its arguments by place
"""Steering inside vLLM's own forward pass: vectors are added to the states of flagged requests.

A steered block calls a registered op behind its own forward, which changes in place what the block
returns for the tokens that are named, and rests in steps that name none. The op is part of what is
compiled; which vectors there are is not: the engine fills them in once the model is loaded.

The step that reads a prompt is over when its verdict is given, so that a flagged request goes once
more. What lies before the first token that is steered comes from the prefix cache; blocks of the
cache from there on have hashes of their own (see `prefixes`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError
from demur.core.interventions import AddVectors
from demur.core.types import Prompt
from demur.engines.vllm.blocks import blocks_of, follow, register
from demur.modeling.tensors import Tensors

ROOM = "demur_steering"
"""In vLLM's `additional_config`: what `Steerings.room` says; it so salts the compile cache, too."""
STEERED = "steered"
"""In a request's `extra_args`, among what it says for demur: see `Steerings.said`."""
FIRST, SALT = "first", "salt"
"""Of what a steered request says: the first position that is changed, and a name for the change."""


def steer(
    hidden: Tensor,
    state: Tensor,
    vectors: Tensor,
    gates: Tensor,
    is_gated: Tensor,
    rows: Tensor,
    slots: Tensor,
    scales: Tensor,
    number: Tensor,
) -> None:
    """Add to the states of some tokens of a step: scale * vector, times gate . state if gated.

    Args:
        hidden: What the block adds to the state before it, [token, d_model]; changed in place.
        state: After the block, [token, d_model]; not changed.
        vectors: [slot, d_model], float32.
        gates: Likewise.
        is_gated: [slot, 1], bool.
        rows: [most tokens]: those that are changed, each once.
        slots: [most tokens]: whose vector each of them gets.
        scales: [most tokens], float32.
        number: [], int, on the CPU: of tokens that are changed; entries behind do not count.
    """
    count = int(number)
    if count == 0:
        return
    of, where = slots[:count], rows[:count]
    along = (state[where].float() * gates[of]).sum(-1, keepdim=True)
    amount = torch.where(is_gated[of], along, 1.0) * scales[:count, None]
    hidden.index_add_(0, where, (amount * vectors[of]).to(hidden.dtype))


register(
    "steer",
    "Tensor(a!) hidden, Tensor state, Tensor vectors, Tensor gates, Tensor is_gated, Tensor rows, "
    "Tensor slots, Tensor scales, Tensor number",
    steer,
)


@dataclass(frozen=True)
class Change:
    """What happens to tokens of a step."""

    rows: range
    """In the step."""
    slot: int
    scale: float


class Steering:
    """The steered blocks of one worker's model.

    Args:
        model: vLLM's, loaded and not compiled yet.
        room: As `Steerings.room` says it.
        max_tokens: Most tokens of a step.
    """

    def __init__(self, model: nn.Module, room: Mapping[str, Any], *, max_tokens: int) -> None:
        blocks = blocks_of(model, room["num_blocks"])
        shape = room["num_slots"], room["d_model"]
        self._is_gated = torch.zeros(shape[0], 1, dtype=torch.bool)
        self._rows = torch.zeros(max_tokens, dtype=torch.long)
        self._slots = torch.zeros(max_tokens, dtype=torch.long)
        self._scales = torch.zeros(max_tokens)
        self._number = torch.tensor(0)
        self._vectors = {layer: torch.zeros(shape) for layer in room["layers"]}
        self._gates = {layer: torch.zeros(shape) for layer in room["layers"]}
        for layer in room["layers"]:
            buffers = {
                "vectors": self._vectors[layer],
                "gates": self._gates[layer],
                "is_gated": self._is_gated,
                "rows": self._rows,
                "slots": self._slots,
                "scales": self._scales,
                "number": self._number,
            }
            follow(blocks[layer], "steer", buffers, _steered)

    def fill(self, slot: int, layer: int, vector: Tensor, gate: Tensor | None) -> None:
        """Put in place what a block adds.

        Args:
            slot: Of the vectors.
            layer: One of the room's, 0-based.
            vector: [d_model].
            gate: [d_model], or none; all blocks of a slot have one, or none has.
        """
        self._vectors[layer][slot] = vector
        if gate is not None:
            self._gates[layer][slot] = gate
            self._is_gated[slot] = True

    def choose(self, changes: Sequence[Change]) -> None:
        """Say what the coming pass changes; no token twice."""
        count = 0
        for change in changes:
            place = slice(count, count + len(change.rows))
            self._rows[place] = torch.arange(change.rows.start, change.rows.stop)
            self._slots[place] = change.slot
            self._scales[place] = change.scale
            count = place.stop
        self._number.fill_(count)


def _steered(block: Any, hidden: Tensor, residual: Tensor) -> None:
    torch.ops.demur.steer(
        hidden,
        hidden + residual,  # as of a tap, lest the compiler round what it would have fused
        block.demur_steer_vectors,
        block.demur_steer_gates,
        block.demur_steer_is_gated,
        block.demur_steer_rows,
        block.demur_steer_slots,
        block.demur_steer_scales,
        block.demur_steer_number,
    )


def change_of(extra: Mapping[str, Any], start: int, rows: slice) -> Change | None:
    """Return what a request wants done to its tokens of a step; None is nothing.

    Args:
        extra: What it says for demur.
        start: The position of the first of them.
        rows: Where they are in the step.
    """
    said = extra.get(STEERED)
    if said is None:
        return None
    changed = range(rows.start + max(said[FIRST] - start, 0), rows.stop)
    return Change(changed, said["slot"], said["scale"]) if changed else None


@dataclass(frozen=True)
class Steerings:
    """The vectors that an engine has in place, whatever their scale.

    Args:
        wanted: Those that flagged requests may be answered under; scales do not matter.
        num_blocks: Of the model.
        d_model: Of its states.
    """

    wanted: Sequence[AddVectors]
    num_blocks: int
    d_model: int

    @cached_property
    def slots(self) -> Mapping[AddVectors, int]:
        """Where each is, scale and position aside."""
        found = dict.fromkeys(_vectors_of(of) for of in self.wanted)
        return {of: slot for slot, of in enumerate(found)}

    def room(self) -> dict[str, Any]:
        """Return what a worker has to know before its model is compiled; nothing if it is empty.

        Raises:
            CapabilityError: There is a GPU: replays of CUDA graphs would not name any tokens.
        """
        if not self.slots:
            return {}
        if torch.cuda.is_available():
            raise CapabilityError(
                "steering inside vLLM runs without a GPU only: serve with the transformers engine, "
                "or name another responder"
            )
        layers = {layer % self.num_blocks for of in self.slots for layer in of.layers}
        return {
            "num_slots": len(self.slots),
            "layers": sorted(layers),
            "num_blocks": self.num_blocks,
            "d_model": self.d_model,
        }

    def fill(self, steering: Steering) -> None:
        """Put all vectors in their places.

        Raises:
            ConfigError: There is no such artifact.
            DataError: An artifact has changed, or does not fit the model.
        """
        tensors = Tensors(torch.device("cpu"))
        for of, slot in self.slots.items():
            shape = len(of.layers), self.d_model
            vectors = tensors.get(of.vectors, shape=shape)
            gates = None if of.gates is None else tensors.get(of.gates, shape=shape)
            for index, layer in enumerate(of.layers):
                gate = None if gates is None else gates[index]
                steering.fill(slot, layer % self.num_blocks, vectors[index], gate)

    def said(self, of: AddVectors, prompt: Prompt) -> dict[str, Any] | None:
        """Return what a request says that is answered under vectors; None if they change nothing.

        Raises:
            CapabilityError: They are not in place.
        """
        slot = self.slots.get(_vectors_of(of))
        if slot is None:
            raise CapabilityError(
                f"the engine has not loaded the vectors of {of.vectors.artifact}: name them when "
                "the engine is loaded"
            )
        if of.scale == 0:
            return None
        first = of.first_position(prompt)
        salt = hashlib.sha256(f"{of} {first}".encode()).hexdigest()
        return {"slot": slot, "scale": of.scale, FIRST: first, SALT: salt}


def _vectors_of(of: AddVectors) -> AddVectors:
    return replace(of, scale=1.0, from_position="last")
