"""Every way to answer a flagged prompt, with random weights: they change no cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demur.core.adapters import CONFIG, WEIGHTS, LoraFolder
from demur.core.folders import as_json
from demur.core.interventions import (
    AddVectors,
    Intervention,
    PrependEmbeddings,
    PrependText,
    ReplyWith,
    SwapHead,
    UseAdapter,
)
from demur.core.tensors import TENSORS, TensorRef
from demur.modeling.load import LoadedModel
from demur.responders.fixed_reply import FixedReply
from demur.responders.safety_prompt import SafetyPrompt

SLACK = 0.10
"""Of a prefill, by which an adapter's time may be over its share of the blocks."""
RANK = 4


@dataclass(frozen=True)
class Way:
    """One way to answer."""

    name: str
    intervention: Intervention | None
    """None lets the prompt pass."""
    claimed_share: float | None = None
    """Of the prompt's tokens, that are read again at most; None where nothing is claimed."""


PASSES = Way("passes", None, 0.0)
IN_VLLM = (
    PASSES,
    Way("fixed_reply", ReplyWith(FixedReply().text), 0.0),
    Way("safety_prompt", PrependText(SafetyPrompt().text)),
)


def ways(loaded: LoadedModel, folder: Path, *, read_layer: int) -> list[Way]:
    """Return all ways of the transformers engine.

    Args:
        loaded: The model.
        folder: Gets the tensors.
        read_layer: What the detector reads; adapters begin above and below it.
    """
    num_blocks, d_model = len(loaded.parts.blocks), loaded.parts.d_model
    head = loaded.model.get_output_embeddings().weight
    text = SafetyPrompt().text
    num_tokens = len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    embeddings = _stored(folder / "embeddings", _random(num_tokens, d_model))
    found = [
        *IN_VLLM,
        Way("soft_prompt", PrependEmbeddings(text, embeddings)),
        Way("refusal_head", SwapHead(_stored(folder / "head", head.detach().clone())), 0.0),
        steered(d_model, folder / "vectors", read_layer),
    ]
    for where, first in (
        ("above the read layer", (read_layer + num_blocks) // 2),
        ("below the read layer", read_layer // 2),
        ("in all blocks", 0),
    ):
        found.append(under_an_adapter(loaded, folder / f"adapter-{first}", first, where))
    return found


def steered(d_model: int, folder: Path, layer: int) -> Way:
    """Return the way of a vector that is added after a block; the folder gets it."""
    return Way("steering", AddVectors((layer,), _stored(folder, _random(1, d_model))))


def under_an_adapter(loaded: LoadedModel, folder: Path, first: int, where: str) -> Way:
    """Return the way of an adapter of all blocks from one on.

    Args:
        loaded: The model.
        folder: Gets the adapter.
        first: Its first block, 0-based.
        where: What the name says of it.
    """
    num_blocks = len(loaded.parts.blocks)
    return Way(
        f"adapter {where}, blocks {first} to {num_blocks - 1}",
        UseAdapter(adapter_from(loaded, folder, first).ref),
        (num_blocks - first) / num_blocks,
    )


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _stored(folder: Path, tensor: Tensor) -> TensorRef:
    """Write a tensor as an artifact would hold it."""
    folder.mkdir(parents=True)
    save_file({"tensor": tensor.contiguous()}, folder / TENSORS)
    return TensorRef.of(folder, "tensor")


def adapter_from(loaded: LoadedModel, folder: Path, first_layer: int) -> LoraFolder:
    """Write a random LoRA adapter of all linear maps of the blocks from one on.

    Args:
        loaded: The model.
        folder: To write.
        first_layer: 0-based.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    maps = _linear_maps(loaded, loaded.parts.blocks[first_layer:])
    for name, linear in maps:
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = 0.01 * _random(RANK, linear.in_features)
        tensors[f"{key}.lora_B.weight"] = 0.01 * _random(linear.out_features, RANK)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    names = sorted({name.rpartition(".")[2] for name, _ in maps})
    (folder / CONFIG).write_bytes(as_json({**config, "target_modules": names}))
    return LoraFolder.read(folder)


def _linear_maps(loaded: LoadedModel, blocks: Sequence[nn.Module]) -> list[tuple[str, nn.Linear]]:
    inside = {id(module) for block in blocks for module in block.modules()}
    return [
        (name, module)
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    ]
