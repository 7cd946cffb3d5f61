"""How likely a model finds given replies to a chat, teacher-forced: one prefill for all of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.core.types import Chat
from demur.modeling.chat import ChatRenderer
from demur.modeling.last_logits import last_only
from demur.modeling.load import LoadedModel

ROWS_A_STEP = 32
"""A pass that is not shared has a multiple of so many tokens: for each new number of rows a CPU
compiles its matrix products anew, which takes longer than the rows."""


class Likelihood:
    """Log-probabilities of replies.

    Chats are read one at a time, so that no value depends on another chat; the replies to one chat
    share its keys and values, and are read side by side.

    Args:
        loaded: The model; it is never changed.

    Raises:
        ConfigError: The model has no chat template.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._renderer = ChatRenderer.of(loaded)

    @torch.inference_mode()
    def log_probs(self, chat: Chat, replies: Sequence[str]) -> list[Array]:
        """Return the log-probability of each token of each reply, one array [token] a reply.

        Args:
            chat: Ends in a user turn.
            replies: Texts; each is split into tokens by itself, and no end token follows.

        Raises:
            DataError: A reply is empty, the chat cannot be rendered, or both are longer than the
                context.
        """
        prompt = self._renderer.render(chat)
        ids = [
            self._renderer.with_reply(prompt, reply).token_ids[len(prompt) :] for reply in replies
        ]
        if not ids:
            return []
        longest = max(map(len, ids))
        if len(prompt) + longest > self._loaded.max_tokens:
            raise DataError(
                f"a chat of {len(prompt)} tokens with a reply of {longest} is longer than the "
                f"context of {self._loaded.max_tokens} of {self._loaded.model_id.name}: shorten it"
            )
        logits = self._logits(prompt.token_ids, ids)
        return [_of_tokens(row, of_reply) for row, of_reply in zip(logits, ids, strict=True)]

    def mean_log_probs(self, chat: Chat, replies: Sequence[str]) -> Array:
        """Return the mean log-probability a token of each reply, [reply], float64.

        Raises:
            DataError: See `log_probs`.
        """
        return np.array([values.mean() for values in self.log_probs(chat, replies)])

    def _logits(self, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits [token, vocabulary] before each token of each reply."""
        if len(replies) == 1:
            return [self._alone(prompt, replies[0])]
        cache = DynamicCache(config=self._loaded.model.config)
        last = last_only(len(prompt), device=self._loaded.device)
        first = self._run([prompt], cache, keep=last)[0]  # [1, vocabulary]
        rest = max(len(ids) for ids in replies) - 1
        if not rest:
            return [first for _ in replies]
        cache.batch_repeat_interleave(len(replies))
        # Padding stands to the right, where attention to what came before never sees it.
        padded = [[*ids[:-1], *[ids[-1]] * (rest + 1 - len(ids))] for ids in replies]
        later = self._run(padded, cache, keep=rest)  # [reply, token, vocabulary]
        return [
            torch.cat([first, row[: len(ids) - 1]]) for row, ids in zip(later, replies, strict=True)
        ]

    def _alone(self, prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
        """Return the logits [token, vocabulary] before each token of the only reply, in one pass.

        Filled up on the right to a multiple of rows, for which a CPU has its products compiled.
        """
        ids = [*prompt, *reply[:-1]]
        filler = min(-len(ids) % ROWS_A_STEP, self._loaded.max_tokens - len(ids))
        keep = torch.arange(len(prompt) - 1, len(ids), device=self._loaded.device)
        output = self._loaded.model(
            input_ids=torch.tensor([[*ids, *ids[:1] * filler]], device=self._loaded.device),
            use_cache=False,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _run(
        self, ids: Sequence[Sequence[int]], cache: DynamicCache, *, keep: int | Tensor
    ) -> Tensor:
        output = self._loaded.model(
            input_ids=torch.tensor([list(row) for row in ids], device=self._loaded.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits


def _of_tokens(logits: Tensor, ids: Sequence[int]) -> Array:
    """Return the log-probabilities [token] of some tokens, float64."""
    wanted = torch.tensor(list(ids), device=logits.device)[:, None]
    found = torch.log_softmax(logits.float(), -1).gather(-1, wanted)[:, 0]
    values: Array = found.double().cpu().numpy()
    return values
