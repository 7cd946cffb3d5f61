"""Reads a few tokens beyond a prompt on a fork of its cache: a word appended, or a reply begun.

The prompt itself goes on as if nothing had happened. Where its cache is at hand, since a guard
decides on it just now, only the new tokens are read; otherwise the prompt is read first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.core.reads import AppendedTokens, TentativeRead
from demur.core.types import Chat, Prompt
from demur.modeling.caches import fork
from demur.modeling.capture import Slot, filling
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel


class TentativeReads:
    """Makes tentative reads of chats.

    Args:
        loaded: The model that reads.
        renderer: Of its template.
    """

    def __init__(self, loaded: LoadedModel, renderer: ChatRenderer) -> None:
        self._loaded = loaded
        self._renderer = renderer
        self._held: tuple[Chat, Tensor, DynamicCache] | None = None

    @contextmanager
    def holding(self, prompt: Prompt, logits: Tensor, cache: DynamicCache) -> Iterator[None]:
        """Go on from a prefill that is at hand, for as long as the block lasts.

        Args:
            prompt: What was read.
            logits: Of its last token, [vocabulary].
            cache: Of all of its tokens; it is not changed.
        """
        self._held = (prompt.chat, logits, cache)
        try:
            yield
        finally:
            self._held = None

    def values_of(self, read: TentativeRead, chats: Sequence[Chat]) -> Array:
        """Return the states [chat, layer, d_model] of a read, float32; a chat at a time.

        Raises:
            ConfigError: The model has no such layer.
            DataError: A chat cannot be rendered, or is longer than the context with what follows.
        """
        if not chats:
            return np.zeros((0, len(read.layers), self._loaded.parts.d_model), np.float32)
        return np.concatenate([self._value(read, chat) for chat in chats])

    @torch.inference_mode()
    def _value(self, read: TentativeRead, chat: Chat) -> Array:
        logits, cache = self._read(chat)
        if isinstance(read, AppendedTokens):
            ids = self._loaded.tokenizer(read.text, add_special_tokens=False)["input_ids"]
            return self._states(read, ids, cache)[0]
        states, logits = self._states(read, [int(torch.argmax(logits))], cache)
        for _ in range(read.num_tokens - 1):
            token = int(torch.argmax(logits))
            if token in self._loaded.end_token_ids:
                break
            states, logits = self._states(read, [token], cache)
        return states

    def _read(self, chat: Chat) -> tuple[Tensor, DynamicCache]:
        """Return the logits [vocabulary] after a chat, and a cache that may be changed."""
        if self._held is not None and self._held[0] == chat:
            return self._held[1], fork(self._held[2])
        cache = DynamicCache()
        return self._run(self._renderer.render(chat).token_ids, cache), cache

    def _states(
        self, read: TentativeRead, ids: Sequence[int], cache: DynamicCache
    ) -> tuple[Array, Tensor]:
        """Read tokens; return the states [1, layer, d_model] at the last one, and its logits."""
        slot = Slot(read.spec, [[len(ids) - 1]])
        with filling(self._loaded.parts, {read.spec: slot}):
            logits = self._run(ids, cache)
        values = slot.values()
        assert isinstance(values, np.ndarray), "a state a layer"
        return values, logits

    def _run(self, ids: Sequence[int], cache: DynamicCache) -> Tensor:
        require_room(self._loaded, cache.get_seq_length() + len(ids))
        return self._loaded.last_logits(ids, cache=cache).float()


def require_room(loaded: LoadedModel, num_tokens: int) -> None:
    """Refuse a prompt that does not fit into the context together with what is read after it.

    Raises:
        DataError: It does not.
    """
    if num_tokens > loaded.max_tokens:
        raise DataError(
            f"the prompt and what is read after it have {num_tokens} tokens: the model takes at "
            f"most {loaded.max_tokens}; shorten the chat"
        )
