"""What vLLM is told when demur starts it."""

from typing import Any

import numpy as np
import pytest
import torch

from demur.engines._columns import Column, Columns
from tests.vllm_engines import D_MODEL, LAST, needs_vllm

pytestmark = needs_vllm
COLUMNS = Columns((Column(LAST, np.zeros((2, D_MODEL), np.float32)),), 4)


def cache_bytes(**options: Any) -> int | None:
    """Return what vLLM is told of its cache's size."""
    arguments = pytest.importorskip("demur.engines.vllm.arguments")
    found: int | None = arguments.guarded(COLUMNS, {}, options).kv_cache_memory_bytes
    return found


def test_without_a_gpu_the_cache_takes_a_part_of_memory_unless_something_else_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert cache_bytes() == 4 << 30
    assert cache_bytes(kv_cache_memory_bytes=5) == 5
    assert cache_bytes(gpu_memory_utilization=0.5) is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert cache_bytes() is None


def test_on_a_gpu_vllm_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cache_bytes() is None
