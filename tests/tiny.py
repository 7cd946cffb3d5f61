"""Tiny random chat models with a byte tokenizer: real architectures, no weights to fetch."""

from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from demur.modeling.blocks import find_parts
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}[{{ m.role }}] {{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

D_MODEL = 32
_SHAPE = {
    "vocab_size": 300,
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8),
    "gemma3": lambda: Gemma3TextConfig(**_SHAPE, head_dim=8, sliding_window=16),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=None),
    "phi3": lambda: Phi3Config(**_SHAPE),
    "olmo2": lambda: Olmo2Config(**_SHAPE),
    "gpt2": lambda: GPT2Config(
        vocab_size=300,
        n_embd=D_MODEL,
        n_layer=4,
        n_head=4,
        n_positions=512,
        bos_token_id=None,
        eos_token_id=257,
    ),
    "mixtral": lambda: MixtralConfig(**_SHAPE, num_local_experts=4, sliding_window=None),
}


def byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and a few markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = template
    return fast


@cache
def tiny(architecture: str = "llama", *, template: str | None = CHATML) -> LoadedModel:
    """Return a tiny random model, the same at each call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    model.eval().requires_grad_(False)
    tokenizer = byte_tokenizer(template)
    name = f"tiny-{architecture}"
    return LoadedModel(model, tokenizer, find_parts(model), identify(model, tokenizer, name=name))
