"""Reads the states of given replies to a prompt, side by side: one prefill for all of them."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.modeling.capture import Slot, filling
from demur.modeling.load import LoadedModel
from demur.modeling.tries import at_last


@torch.inference_mode()
def states_of_replies(
    loaded: LoadedModel,
    prompt: Prompt,
    replies: Sequence[Sequence[int]],
    read: CaptureSpec,
) -> list[Array]:
    """Return the states of each reply's tokens, one array [token, d_model] a reply, float32.

    Args:
        loaded: The model; it is never changed.
        prompt: What was read before.
        replies: The tokens of each; none is empty.
        read: Of one layer.

    Raises:
        DataError: A reply is empty, or longer than the context with the prompt.
    """
    widest = max(map(len, replies), default=0)
    if not all(map(len, replies)) or len(prompt) + widest > loaded.max_tokens:
        raise DataError(
            f"replies of {sorted({len(ids) for ids in replies})} tokens after a prompt of "
            f"{len(prompt)}: expected 1 or more, and at most {loaded.max_tokens} together"
        )
    if not replies:
        return []
    cache = DynamicCache(config=loaded.model.config)
    inputs = torch.tensor([prompt.token_ids], device=loaded.device)
    loaded.parts.body(input_ids=inputs, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(replies))
    # Padding stands to the right, where attention to what came before never sees it.
    padded = [[*ids, *[ids[-1]] * (widest - len(ids))] for ids in replies]
    rows = [[row * widest + n] for row, ids in enumerate(replies) for n in range(len(ids))]
    slot = Slot(at_last(read), rows)
    with filling(loaded.parts, {read: slot}):
        loaded.parts.body(
            input_ids=torch.tensor(padded, device=loaded.device),
            past_key_values=cache,
            use_cache=True,
        )
    states = np.asarray(slot.values())[:, 0]
    return np.split(states, np.cumsum([len(ids) for ids in replies])[:-1])
