"""Says which model a detector belongs to: hashes of what its states depend on besides weights."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch

from demur.core.types import ModelId

VALUES_A_WEIGHT = 256
"""Values of each parameter that are hashed, about."""

_SHAPE_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def identify(model: Any, tokenizer: Any, *, name: str) -> ModelId:
    """Return the identity of a transformers model with its tokenizer.

    Padding and truncation settings of the tokenizer do not count: demur uses neither.
    """
    dtype = str(next(model.parameters()).dtype)
    found = identify_unloaded(model.config, tokenizer, name=name, dtype=dtype)
    return replace(found, weights=_hash_of_weights(model))


def identify_unloaded(config: Any, tokenizer: Any, *, name: str, dtype: str) -> ModelId:
    """Return the identity of a model that another engine loads: of its weights it says nothing.

    Args:
        config: Of transformers.
        tokenizer: Of transformers.
        name: What people call the model.
        dtype: Number format of the weights, as torch names it.
    """
    config = config.get_text_config(decoder=True)
    shapes = {field: getattr(config, field, None) for field in _SHAPE_FIELDS}
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary.pop("padding", None)
    vocabulary.pop("truncation", None)
    return ModelId(
        architecture=_hash(shapes),
        tokenizer=_hash(vocabulary),
        chat_template=_hash(tokenizer.chat_template),
        name=name,
        dtype=dtype.removeprefix("torch."),
    )


def _hash_of_weights(model: Any) -> str:
    """Return a hash of evenly spaced values of every parameter: whole ones would take seconds."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // VALUES_A_WEIGHT)]
        digest.update(name.encode())
        digest.update(sample.to(torch.float32).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
