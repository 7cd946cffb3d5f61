"""LoRA adapters of tiny models, written by PEFT itself, and the same in PEFT to compare with."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from demur.core.adapters import CONFIG, WEIGHTS, LoraFolder
from demur.core.folders import MANIFEST, SCHEMA_VERSION, as_json
from demur.modeling.load import LoadedModel
from demur.modeling.quiet import quiet


def linear_maps(model: LoadedModel, layers: Sequence[int] | None = None) -> list[str]:
    """Return the paths of the linear maps of some blocks, or of all."""
    chosen = range(len(model.parts.blocks)) if layers is None else layers
    inside = {id(m) for layer in chosen for m in model.parts.blocks[layer].modules()}
    return [
        name
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside
    ]


def lora(
    folder: Path,
    model: LoadedModel,
    *,
    layers: Sequence[int] | None = None,
    rank: int = 4,
    seed: int = 0,
    spread: float = 0.3,
    **settings: Any,
) -> LoraFolder:
    """Let PEFT write an adapter with random weights, large enough to change what is said.

    Args:
        folder: To write.
        model: That it is for.
        layers: Whose linear maps are adapted; None for all blocks.
        rank: Of the adapter.
        seed: Of its weights.
        spread: Standard deviation of the weights.
        settings: Of PEFT's configuration.
    """
    settings = {"target_modules": linear_maps(model, layers), "lora_alpha": 8} | settings
    is_conv = any(isinstance(module, Conv1D) for module in model.model.modules())
    config = LoraConfig(r=rank, task_type="CAUSAL_LM", fan_in_fan_out=is_conv, **settings)
    with quiet():  # PEFT asks transformers for what is deprecated
        adapted = get_peft_model(copy.deepcopy(model.model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
    with quiet():
        adapted.save_pretrained(folder)
    return LoraFolder.read(folder)


def with_manifest(of: LoraFolder, model: LoadedModel, **fields: Any) -> LoraFolder:
    """Write beside an adapter what demur says of an artifact, and read it again."""
    folder = Path(of.folder)
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "responder",
        "method": "adapter",
        "model_id": model.model_id.as_dict(),
        "fields": {},
        "sha256": hashes,
        "provenance": {},
    }
    (folder / MANIFEST).write_bytes(as_json(manifest | fields))
    return LoraFolder.read(folder)


def in_plain_peft(model: Any, folder: Path) -> Any:
    """Return a model with an adapter's folder in it, as PEFT loads it."""
    with quiet():  # PEFT asks transformers for a property that is deprecated
        return PeftModel.from_pretrained(model, folder).eval()


def in_peft(model: LoadedModel, of: LoraFolder, *, scale: float = 1.0) -> LoadedModel:
    """Return a copy of a model that runs an adapter as PEFT does."""
    adapted = in_plain_peft(copy.deepcopy(model.model), Path(of.folder))
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: scale * by for name, by in module.scaling.items()}
    return replace(model, model=adapted)
