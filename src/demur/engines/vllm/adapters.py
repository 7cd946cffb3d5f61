"""Adapters that vLLM runs beside its model: all are loaded at the start, each in a slot of its own.

One more slot stays empty. Without a GPU vLLM adds what lies in the last slot to rows that have no
adapter, instead of nothing; an empty one adds zeros, and so they stay what they were.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

from demur.core.adapters import CONFIG, WEIGHTS
from demur.core.errors import CapabilityError
from demur.core.interventions import UseAdapter

LoraRequests = Mapping[UseAdapter, LoRARequest | None]
"""How vLLM is asked for each adapter; None is one of scale 0, which changes nothing."""


def engine_arguments(adapters: Sequence[UseAdapter]) -> dict[str, Any]:
    """Return the fields of `EngineArgs` that make room for adapters.

    Raises:
        CapabilityError: The rank of one is more than vLLM runs.
    """
    found = [of for of in adapters if of.scale]
    if not found:
        return {}
    rank = max(of.shape_a[0] for one in found for of in one.adapter.checked().maps)
    rooms = [room for room in get_args(MaxLoRARanks) if room >= rank]
    if not rooms:
        most = max(get_args(MaxLoRARanks))
        raise CapabilityError(f"the adapter has rank {rank}: vLLM runs at most {most}")
    return {"enable_lora": True, "max_lora_rank": min(rooms), "max_loras": len(set(found)) + 1}


@contextmanager
def lora_requests(adapters: Sequence[UseAdapter]) -> Iterator[LoraRequests]:
    """Give adapters their slots; inside the block lie the files that vLLM is to read.

    Args:
        adapters: Each with its scale.

    Raises:
        ConfigError: An adapter's folder is gone.
        DataError: It has changed.
    """
    found: dict[UseAdapter, LoRARequest | None] = {of: None for of in adapters if not of.scale}
    wanted = dict.fromkeys(of for of in adapters if of.scale)
    with TemporaryDirectory(prefix="demur-adapters-") as room:
        for number, of in enumerate(wanted, start=1):
            of.adapter.checked()
            folder = _scaled(of, Path(room) / str(number))
            name = f"{of.adapter.sha256}@{of.scale!r}"  # prefixes are cached under it
            found[of] = LoRARequest(name, number, str(folder))
        yield found


def load_adapters(engine: LLMEngine, adapters: Sequence[UseAdapter]) -> LoraRequests:
    """Load adapters into their slots.

    Args:
        engine: In this process, started with their `engine_arguments`.
        adapters: Each with its scale.

    Raises:
        CapabilityError: vLLM cannot run one.
        ConfigError: An adapter's folder is gone.
        DataError: It has changed.
    """
    with lora_requests(adapters) as found:
        for of, request in found.items():
            if request is None:
                continue
            try:
                engine.add_lora(request)
                engine.pin_lora(request.lora_int_id)
            except Exception as error:
                raise cannot_run(of, error) from error
    return found


def cannot_run(of: UseAdapter, error: Exception) -> CapabilityError:
    """Return what to say of an adapter that vLLM did not load."""
    return CapabilityError(f"vLLM cannot run the adapter {of.adapter.folder}: {error}")


def _scaled(of: UseAdapter, folder: Path) -> Path:
    """Return a folder that holds an adapter at its scale, until vLLM has read it."""
    config = json.loads((Path(of.adapter.folder) / CONFIG).read_text(encoding="utf-8"))
    config["lora_alpha"] *= of.scale
    config["alpha_pattern"] = {
        name: of.scale * alpha for name, alpha in (config.get("alpha_pattern") or {}).items()
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(Path(of.adapter.folder) / WEIGHTS, folder / WEIGHTS)
    return folder
