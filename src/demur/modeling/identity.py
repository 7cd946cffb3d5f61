"""Says which model a detector belongs to: hashes of what its states depend on besides weights."""

import hashlib
import json
from typing import Any

from demur.core.types import ModelId

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
    config = model.config.get_text_config(decoder=True)
    shapes = {field: getattr(config, field, None) for field in _SHAPE_FIELDS}
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary.pop("padding", None)
    vocabulary.pop("truncation", None)
    return ModelId(
        architecture=_hash(shapes),
        tokenizer=_hash(vocabulary),
        chat_template=_hash(tokenizer.chat_template),
        name=name,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
