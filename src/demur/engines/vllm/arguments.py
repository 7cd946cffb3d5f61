"""What vLLM is told so that its worker is a guarded one."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs

from demur.engines._columns import Columns
from demur.engines._stored_columns import store
from demur.engines.vllm.reader import CONFIG_KEY
from demur.engines.vllm.steering import ROOM
from demur.engines.vllm.worker import READOUTS
from demur.modeling.gguf import cache_folder

WORKERS = "demur.engines.vllm.{}_worker.Guarded{}Worker"
CPU_CACHE_BYTES = 4 << 30
"""Of keys and values without a GPU: by itself vLLM takes nearly all memory, or does not start."""
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""Sets the same in GiB."""
FORCED_REPLY = "demur.engines.vllm.worker:ForcedReply"


def guarded(columns: Columns, room: Mapping[str, Any], options: Mapping[str, Any]) -> EngineArgs:
    """Return the arguments of an engine in this process.

    The hash of the columns goes into `additional_config`, which is part of the key of vLLM's
    compile cache: a model compiled for other read-outs is never taken.

    Args:
        columns: What the model is to compute; they are stored in demur's cache for the worker.
        room: For vectors: see `Steerings.room`.
        options: Fields of vLLM's `EngineArgs`; those that guard win. The cache has 4 GiB without a
            GPU, unless something else is said.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the judge is called within a step
    found = guarding(columns, workers=WORKERS)
    if room:
        found["additional_config"] |= {ROOM: dict(room)}
    return EngineArgs(**{**_cache_room(options), **options, **found})


def guarding(columns: Columns, *, workers: str) -> dict[str, Any]:
    """Return the fields of `EngineArgs` that guard.

    Args:
        columns: As of `guarded`.
        workers: The worker's class, with braces in place of `cpu` or `gpu`, and of `Cpu` or `Gpu`.
    """
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    return {
        "worker_cls": workers.format(kind, kind.capitalize()),
        "additional_config": {CONFIG_KEY: store(columns, cache_folder() / READOUTS)},
    }


def _cache_room(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `EngineArgs` that say how much memory the cache gets."""
    is_said = CPU_CACHE in os.environ or "gpu_memory_utilization" in options
    if is_said or torch.cuda.is_available():
        return {}
    return {"kv_cache_memory_bytes": CPU_CACHE_BYTES}


def forcing() -> dict[str, Any]:
    """Return the fields of `EngineArgs` that a worker needs which forces replies."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return {"async_scheduling": False, "logits_processors": [FORCED_REPLY]}
