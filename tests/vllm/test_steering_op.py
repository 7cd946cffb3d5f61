"""The parts of steering inside vLLM: the op behind blocks, what requests say, the hashes there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demur.core.errors import CapabilityError
from demur.core.interventions import AddVectors
from demur.core.tensors import TensorRef
from demur.core.types import Chat, Prompt
from tests.trained import trained
from tests.vllm_engines import needs_vllm

pytestmark = needs_vllm
D_MODEL, NUM_BLOCKS = 6, 3
PROMPT = Prompt(Chat.from_text("hi"), tuple(range(9)), ())


@pytest.fixture(scope="module")
def parts() -> Any:
    """Return the module under test."""
    return pytest.importorskip("demur.engines.vllm.steering")


class Block(nn.Module):
    """A block as vLLM's are: what it adds, and what came in."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.scale = index + 1.0

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * hidden, residual + hidden


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(index) for index in range(NUM_BLOCKS))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = torch.zeros_like(hidden)
        for block in self.blocks:
            hidden, residual = block(hidden, residual)
        return hidden + residual


def vectors(seed: int) -> Tensor:
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def steered(parts: Any, model: Model) -> Any:
    """Return a model's steering: slot 0 after the last block, slot 1 after two, under gates."""
    room = {"num_slots": 2, "layers": [0, 2], "num_blocks": NUM_BLOCKS, "d_model": D_MODEL}
    found = parts.Steering(model, room, max_tokens=8)
    found.fill(0, 2, vectors(0), None)
    found.fill(1, 0, vectors(1), vectors(2))
    found.fill(1, 2, vectors(3), vectors(4))
    return found


def by_hand(model: Model, state: Tensor, additions: dict[int, Any]) -> Tensor:
    """Return the last state of one token, with something added after some blocks."""
    hidden, residual = state, torch.zeros_like(state)
    for index, block in enumerate(model.blocks):
        hidden, residual = block(hidden, residual)
        if index in additions:
            hidden = hidden + additions[index](hidden + residual)
    return hidden + residual


def test_named_tokens_get_their_vectors_and_all_others_stay_bit_for_bit(parts: Any) -> None:
    model, bare = Model(), Model()
    steering = steered(parts, model)
    states = torch.randn(7, D_MODEL, generator=torch.Generator().manual_seed(9))
    steering.choose([parts.Change(range(1, 3), 0, -2.0), parts.Change(range(4, 5), 1, 0.5)])
    found = model(states)
    plain = bare(states)
    assert torch.equal(found[[0, 3, 5, 6]], plain[[0, 3, 5, 6]])
    for row in (1, 2):
        expected = by_hand(bare, states[row], {2: lambda _: -2.0 * vectors(0)})
        torch.testing.assert_close(found[row], expected)
    gated = {
        0: lambda state: 0.5 * (state @ vectors(2)) * vectors(1),
        2: lambda state: 0.5 * (state @ vectors(4)) * vectors(3),
    }
    torch.testing.assert_close(found[4], by_hand(bare, states[4], gated))
    steering.choose([])
    assert torch.equal(model(states), plain)


def test_a_model_without_such_a_list_of_blocks_is_refused() -> None:
    blocks_of = pytest.importorskip("demur.engines.vllm.blocks").blocks_of
    with pytest.raises(CapabilityError, match="0 lists of 4 blocks"):
        blocks_of(Model(), 4)


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [(0, 5, None), (0, 6, range(15, 16)), (3, 4, range(12, 14)), (7, 1, range(10, 11))],
)
def test_a_request_is_changed_from_its_first_position_on(
    parts: Any, start: int, count: int, expected: range | None
) -> None:
    extra = {"steered": {"first": 5, "slot": 1, "scale": 0.5, "salt": ""}}
    found = parts.change_of(extra, start, slice(10, 10 + count))
    assert found == (None if expected is None else parts.Change(expected, 1, 0.5))
    assert parts.change_of({}, start, slice(10, 10 + count)) is None


def wanted(tmp_path: Path, **fields: Any) -> AddVectors:
    ref: TensorRef = trained("steering", tmp_path / "vectors").tensor("vectors")
    return AddVectors((1, -1), ref, **fields)


def test_vectors_are_found_at_any_scale_and_position(parts: Any, tmp_path: Path) -> None:
    of = wanted(tmp_path)
    steerings = parts.Steerings([of, AddVectors((1, -1), of.vectors, -3.0)], NUM_BLOCKS, D_MODEL)
    room = steerings.room()
    assert room == {"num_slots": 1, "layers": [1, 2], "num_blocks": NUM_BLOCKS, "d_model": D_MODEL}
    one, two = (steerings.said(AddVectors((1, -1), of.vectors, s), PROMPT) for s in (1.0, 2.0))
    assert one is not None
    assert two is not None
    assert (two["slot"], two["scale"], two["first"]) == (0, 2.0, 8)
    assert one["salt"] != two["salt"]
    assert steerings.said(AddVectors((1, -1), of.vectors, 0.0), PROMPT) is None
    with pytest.raises(CapabilityError, match="name them when the engine is loaded"):
        steerings.said(AddVectors((0,), of.vectors), PROMPT)


def test_nothing_is_made_room_for_without_need(parts: Any) -> None:
    assert parts.Steerings([], NUM_BLOCKS, D_MODEL).room() == {}


def test_a_gpu_is_refused(parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(CapabilityError, match="without a GPU only"):
        parts.Steerings([wanted(tmp_path)], NUM_BLOCKS, D_MODEL).room()


def test_blocks_from_the_first_steered_token_on_have_hashes_of_their_own() -> None:
    salted = pytest.importorskip("demur.engines.vllm.prefixes").salted

    def hashes(salt: str, first: int, before: int = 0) -> list[bytes]:
        said = {"steered": {"first": first, "salt": salt}} if salt else {}
        request = SimpleNamespace(
            block_hashes=[b""] * before,
            sampling_params=SimpleNamespace(extra_args={"demur": said}),
        )
        found: list[bytes] = salted(lambda _: [bytes([n]) for n in range(before, 4)], 32, request)
        return found

    bare = hashes("", 0)
    assert hashes("a", 95)[:2] == bare[:2]
    assert not set(hashes("a", 95)[2:]) & set(bare)
    assert hashes("a", 96)[:3] == bare[:3]
    assert hashes("a", 33, before=1) == hashes("a", 33)[1:]
    assert not set(hashes("a", 0)) & set(hashes("b", 0))
