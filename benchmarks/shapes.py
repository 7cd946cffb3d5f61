"""Models of real shapes and random weights: neither time nor operations depend on what weights are.

Also on disk, with the embedded model's tokenizer, for servers that load a folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    Qwen2Config,
)

from demur.modeling.gguf import cache_folder
from demur.modeling.load import load

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SERVED: dict[str, Callable[[], Any]] = {
    "0.135B": lambda: LlamaConfig(
        **SMOLLM2, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "0.5B": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "1B": lambda: LlamaConfig(**LLAMA_1B),
    "8B": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
"""By name: SmolLM2-135M, Qwen2.5-0.5B, Llama 3.2 1B, Llama 3 8B."""


def make(config: Any, *, dtype: torch.dtype, is_classifier: bool = False) -> Any:
    """Return a model of random weights."""
    torch.manual_seed(0)
    factory = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    return factory.from_config(config, dtype=dtype).eval().requires_grad_(False)


def shape_folder(name: str) -> Path:
    """Return the folder of a chat model of a shape, in bfloat16; it is written once.

    Args:
        name: Of SERVED.
    """
    folder = cache_folder() / "benchmarks" / "shapes" / name
    done = folder / "done"
    if not done.is_file():
        tokenizer, config = load("embedded").tokenizer, SERVED[name]()
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            make(config, dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        done.touch()
    return folder
