"""A tiny random sentence encoder with a byte tokenizer, as a folder: nothing to fetch."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from tests.tiny import byte_tokenizer


def save_encoder(path: Path, *, seed: int = 0) -> Path:
    """Save an encoder in the form of sentence-transformers; another seed draws other weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=257,
    )
    bare = path.with_name(f"{path.name}-bert")
    BertModel(config).save_pretrained(bare)
    byte_tokenizer(template=None).save_pretrained(bare)
    # A folder without modules gets mean pooling.
    encoder = SentenceTransformer(str(bare), device="cpu")
    encoder.max_seq_length = 128
    encoder.save(str(path))
    return path
