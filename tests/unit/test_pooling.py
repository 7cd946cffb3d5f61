"""Pooled states against NumPy, in pieces of every size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.modeling import capture, pooling
from demur.modeling.capture import Slot
from demur.modeling.pooling import Pooling

MEAN = CaptureSpec((0,), positions="all", normalise="rms", pool="mean")
MAX = CaptureSpec((0,), positions="all", normalise="rms", pool="max")
PLAIN = CaptureSpec((0,), positions="all", pool="mean")
D_MODEL = 8


def drawn(rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, D_MODEL, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(states: Tensor, spec: CaptureSpec) -> Array:
    values = states.double().numpy()
    if spec.normalise == "rms":
        values = values / np.sqrt((values**2).mean(-1, keepdims=True))
    found: Array = values.mean(0) if spec.pool == "mean" else values.max(0)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 4, 13])
@pytest.mark.parametrize("spec", [MEAN, MAX, PLAIN])
def test_pools_are_numpys_however_many_rows_are_taken_at_once(
    spec: CaptureSpec, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "NUMBERS_AT_ONCE", 5 * D_MODEL)
    monkeypatch.setattr(pooling, "NUMBERS_A_CHUNK", 4 * D_MODEL)
    pool = Pooling(spec)
    for seed in range(3):  # the memory of the first is used again
        states = drawn(rows, seed=seed, dtype=dtype)
        before = states.clone()
        np.testing.assert_allclose(pool(states).numpy(), expected(states, spec), atol=1e-5)
        assert torch.equal(states, before)


def test_what_one_prompt_leaves_in_memory_says_nothing_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooling, "NUMBERS_AT_ONCE", D_MODEL)
    pool = Pooling(MEAN)
    for rows in (2, 9, 4):
        states = drawn(rows, dtype=torch.bfloat16)
        np.testing.assert_allclose(pool(states).numpy(), expected(states, MEAN), atol=1e-5)


@pytest.mark.parametrize("spec", [MEAN, MAX, PLAIN])
def test_pools_of_all_layers_at_once_are_those_of_each(spec: CaptureSpec) -> None:
    layers = torch.stack([drawn(6, seed=seed, dtype=torch.bfloat16) for seed in range(3)])
    wanted = np.stack([expected(states, spec) for states in layers])
    np.testing.assert_allclose(Pooling(spec)(layers).numpy(), wanted, atol=1e-5)


@pytest.fixture(params=["at once", "at the end"])
def when(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pool each module's output as it comes, or all layers at the end."""
    if request.param == "at once":
        monkeypatch.setattr(capture, "NUMBERS_KEPT", 0)


LAYERS = replace(MEAN, layers=(0, 4))


@pytest.mark.usefixtures("when")
@pytest.mark.parametrize("rows", [[[1, 2, 3], [5, 6]], [[3, 1, 2], [5, 6]], [[1, 3], [6]]])
def test_a_slot_pools_the_rows_of_each_prompt_in_a_range_or_not(rows: list[list[int]]) -> None:
    slot, outputs = Slot(LAYERS, rows), [drawn(8, seed=seed) for seed in range(2)]
    for index, states in enumerate(outputs):
        slot.take(index, states[None], None)
        states.zero_()  # a copy was kept
    found = np.asarray(slot.values())
    outputs = [drawn(8, seed=seed) for seed in range(2)]
    wanted = [[expected(of[of_prompt], MEAN) for of in outputs] for of_prompt in rows]
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-5)


@pytest.mark.usefixtures("when")
def test_a_slot_pools_what_a_module_saw_of_the_rows() -> None:
    slot, states = Slot(LAYERS, [[2, 3], [6]]), drawn(8)
    slot.take(0, states, None)
    present = torch.tensor([1, 2, 3, 6])
    slot.take(1, states[present], present)
    found = np.asarray(slot.values())
    wanted = np.stack([expected(states[rows], MEAN) for rows in ([2, 3], [6])])
    np.testing.assert_allclose(found, np.stack([wanted, wanted], 1), atol=1e-5)
