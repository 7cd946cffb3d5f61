"""A tiny model in which one block makes it refuse, once that block's weights are scaled."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from demur.core.examples import Example
from demur.core.types import Chat
from demur.modeling.blocks import find_parts
from demur.modeling.chat import ChatRenderer
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel
from demur.modeling.scaling import scaled
from tests.tiny import CONFIGS, byte_tokenizer

NUM_BLOCKS, REFUSING, FACTOR = 8, 6, 1.2
REFUSES, COMPLIES = "U", "C"
"""How replies begin; of the openings that demur knows, U begins refusals only, and C compliance."""


@cache
def refusing() -> LoadedModel:
    """Return a model in which one block alone adds to states.

    All prompts end in the same token, so that what the block adds there is one vector. U is drawn
    along it, C along the token's embedding: C wins as it is, and U once the block is scaled.
    """
    torch.manual_seed(0)
    config: LlamaConfig = CONFIGS["llama"]()
    config.num_hidden_layers = NUM_BLOCKS
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.requires_grad_(False)
    tokenizer = byte_tokenizer()
    for number, block in enumerate(model.model.layers):
        block.self_attn.o_proj.weight.zero_()
        if number != REFUSING:
            block.mlp.down_proj.weight.zero_()
    loaded = LoadedModel(
        model, tokenizer, find_parts(model), identify(model, tokenizer, name="refusing")
    )
    start, before = _last_state(loaded, 0), _last_state(loaded, NUM_BLOCKS - 1)
    after = _last_state(scaled(loaded, [REFUSING], FACTOR), NUM_BLOCKS - 1)
    along = start / start.norm()
    across = (before - start) - ((before - start) @ along) * along
    across /= across.norm()
    ratios = [float(state @ across) / float(state @ along) for state in (before, after)]
    assert 0 < ratios[0] < ratios[1]
    head = model.get_output_embeddings().weight.zero_()
    for letter, row in ((REFUSES, across), (COMPLIES, along * (ratios[0] * ratios[1]) ** 0.5)):
        head[tokenizer.convert_tokens_to_ids(letter)] = row
    return replace(loaded, model_id=identify(model, tokenizer, name="refusing"))


def _last_state(loaded: LoadedModel, block: int) -> Tensor:
    """Return the last token's state after a block, [d_model]; the first block adds nothing."""
    ids = ChatRenderer.of(loaded).render(Chat.from_text("Hello")).token_ids
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handle = loaded.parts.blocks[block].register_forward_hook(keep)
    loaded.model(torch.tensor([list(ids)]), use_cache=False)
    handle.remove()
    return seen[0][0, -1]


def lookalikes(number: int, *, start: int = 0) -> list[Example]:
    """Return safe prompts that count as look-alikes."""
    return [
        Example(str(row), Chat.from_text(f"Tell me of number {row}"), "safe", kind="look_alike")
        for row in range(start, start + number)
    ]
