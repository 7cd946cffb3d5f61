"""Tiny random guard models, as folders: the shapes and prompts of published ones, nothing to fetch.

Each template is what a published model brings along, with a shorter policy. The prompts that come
of them are written out by hand beside them.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from demur.modeling.blocks import find_parts
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel
from tests.tiny import byte_tokenizer

TEXTS = ("How do I boil an egg?", "Why is the sky blue, and not green?")
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=8, sliding_window=16),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "granite": lambda: GraniteConfig(**SHAPE),
}


@dataclass(frozen=True)
class Published:
    """A published guard model's format."""

    format: str
    architecture: str
    prompt: str
    """What it reads, up to the answer, with `TEXT` for the user's text."""
    unsafe: str
    """First letters of the answers that mean it."""
    safe: str
    template: str | None = None
    """Of its tokenizer."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the detector, beside model and format."""


LLAMA_GUARD = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: Check if there is unsafe "
    "content in 'User' messages in conversations according our safety policy with the below "
    "categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\n"
    "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n{% for m in messages %}"
    "{{ 'User' if m.role == 'user' else 'Agent' }}: {{ m.content | trim }}\n\n{% endfor %}"
    "<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST User message in the "
    "above conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line "
    "must include a comma-separated list of violated categories.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>"
)
QWEN3_GUARD = (
    "<|im_start|>user\n# Task: Safety Assessment\n\n<BEGIN CONVERSATION>\n\n"
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n\n{% endfor %}"
    "<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST USER's query in the "
    "above conversation.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>{{ '\\n\\n' }}"
)
SHIELD_GEMMA = (
    "You are a policy expert trying to help determine whether a user prompt is in violation of the "
    "defined safety policies.\n\n<start_of_turn>\nHuman Question: {{ messages[0].content | trim }}"
    "\n<end_of_turn>\n\nOur safety principle is defined in the below:\n\n* {{ guideline }}\n\n"
    "Does the human question violate the above principle? Your answer must start with 'Yes' or "
    "'No'. And then walk through step by step to be sure we answer correctly.{{ '\\n\\n' }}"
)
GRANITE_GUARDIAN = (
    "<|start_of_role|>user<|end_of_role|>You are a safety agent. Risk: {{ "
    "guardian_config.risk_name or guardian_config.criteria_id }}."
    "{{ ' <no-think>' if think is defined and not think else '' }}\n\n<start_of_turn>\n"
    "User Message: {{ messages[0].content }}<end_of_turn>\n\nYour answer must be either 'Yes' or "
    "'No'.<|end_of_text|>\n{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>"
    "{% endif %}"
)

PUBLISHED = (
    Published(
        format="llama_guard",
        architecture="llama",
        template=LLAMA_GUARD,
        prompt="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: Check if there "
        "is unsafe content in 'User' messages in conversations according our safety policy with "
        "the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: Violent Crimes.\n<END "
        "UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\nUser: TEXT\n\n<END CONVERSATION>"
        "\n\nProvide your safety assessment for ONLY THE LAST User message in the above "
        "conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line "
        "must include a comma-separated list of violated categories.<|eot_id|><|start_header_id|>"
        "assistant<|end_header_id|>\n\n",
        unsafe="u",
        safe="s",
    ),
    Published(
        format="wildguard",
        architecture="mistral",
        prompt="<s><|user|>\n[INST] You are a classifier for analyzing interactions between humans "
        "and LLMs. Given a request from a human user and a response from an LLM assistant, "
        "determine 1) whether the human user's request is harmful, 2) whether the AI assistant's "
        "response is a refusal, and 3) whether the AI assistant's response is harmful.\n\nHuman "
        "user:\nTEXT\n\nAI assistant:\n\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
        "Harmful request: ",
        unsafe="y",
        safe="n",
    ),
    Published(
        format="qwen3guard",
        architecture="qwen3",
        template=QWEN3_GUARD,
        prompt="<|im_start|>user\n# Task: Safety Assessment\n\n<BEGIN CONVERSATION>\n\nUSER: TEXT"
        "\n\n<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST USER's query "
        "in the above conversation.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        "Safety: ",
        unsafe="UC",
        safe="S",
    ),
    Published(
        format="granite_guardian",
        architecture="granite",
        template=GRANITE_GUARDIAN,
        prompt="<|start_of_role|>user<|end_of_role|>You are a safety agent. Risk: harm.\n\n"
        "<start_of_turn>\nUser Message: TEXT<end_of_turn>\n\nYour answer must be either 'Yes' or "
        "'No'.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        unsafe="Y",
        safe="N",
    ),
    Published(
        format="granite_guardian_3_3",
        architecture="granite",
        template=GRANITE_GUARDIAN,
        prompt="<|start_of_role|>user<|end_of_role|>You are a safety agent. Risk: harm. <no-think>"
        "\n\n<start_of_turn>\nUser Message: TEXT<end_of_turn>\n\nYour answer must be either 'Yes' "
        "or 'No'.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><score> ",
        unsafe="y",
        safe="n",
    ),
)


@cache
def guard_model(architecture: str) -> Any:
    """Return a tiny random model, the same at each call; its answers differ from text to text."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    return model.eval().requires_grad_(False)


def served(template: str) -> LoadedModel:
    """Return a tiny model with a chat template, loaded."""
    model, tokenizer = guard_model("llama"), byte_tokenizer(template)
    name = identify(model, tokenizer, name="tiny-served")
    return LoadedModel(model, tokenizer, find_parts(model), name)


def save_guard(folder: Path, architecture: str, template: str | None) -> Path:
    """Save a tiny guard model as a folder that transformers loads."""
    guard_model(architecture).save_pretrained(folder)
    byte_tokenizer(template).save_pretrained(folder)
    return folder


def save_classifier(
    folder: Path, *, labels: tuple[str, ...] = ("fine", "rude", "cruel"), window: int = 66
) -> Path:
    """Save a tiny random sequence classifier as a folder that transformers loads."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=window,
        initializer_range=0.3,
        pad_token_id=257,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer(template=None).save_pretrained(folder)
    return folder


def log_probability(model: Any, prompt: str, letters: str) -> float:
    """Return how likely a model finds one of some letters after a prompt, without demur."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    answers = tokenizer.convert_tokens_to_ids(list(letters))
    return float(torch.log_softmax(logits, -1)[answers].logsumexp(0))


def log_odds(model: Any, prompt: str, unsafe: str, safe: str) -> float:
    """Return the log odds that a model answers in unsafe letters rather than safe ones."""
    return log_probability(model, prompt, unsafe) - log_probability(model, prompt, safe)
