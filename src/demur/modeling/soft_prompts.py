"""Reads chats whose safety prompt is embeddings in place of tokens, with gradients for these alone.

Chats under one soft prompt begin alike: template, soft prompt, template. That head is read once a
batch, and its keys and values are used for all rows; the gradients of the rows meet in it. Padding
stands to the right, where causal attention never sees it from a prompt's last token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt, Span
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.modeling.packing import batches, shared_prefix

TOKENS_A_BATCH = 640
"""Of a padded batch, the head left out. A token of a model of 24 blocks and d_model 896 leaves
about 2 MB for the way back."""
LAST = CaptureSpec((-1,), "last", "final_norm")


@dataclass(frozen=True)
class Placed:
    """A prompt, and which of its tokens are the safety prompt's."""

    prompt: Prompt
    where: Span

    @property
    def head(self) -> tuple[int, ...]:
        """The tokens up to the end of the safety prompt."""
        return self.prompt.token_ids[: self.where.stop]


def spliced(
    loaded: LoadedModel, token_ids: Sequence[int], where: Span, embeddings: Tensor
) -> Tensor:
    """Return the embeddings [token, d_model] of tokens, with others in place of some.

    Args:
        loaded: Whose embeddings they are.
        token_ids: All of them.
        where: Those that are replaced.
        embeddings: [token, d_model], one for each that is replaced.
    """
    embed = loaded.model.get_input_embeddings()
    own: Tensor = embed(torch.tensor(list(token_ids), device=loaded.device))
    return torch.cat([own[: where.start], embeddings.to(own), own[where.stop :]])


class SoftPromptReader:
    """Reads the last states of chats under embeddings that stand for a safety prompt.

    Args:
        loaded: The model; it is never changed.
        text: The safety prompt.

    Raises:
        ConfigError: The model has no chat template.
    """

    def __init__(self, loaded: LoadedModel, text: str) -> None:
        self._loaded = loaded
        self._text = text
        self._renderer = ChatRenderer.of(loaded)

    def place(self, chat: Chat) -> Placed:
        """Return a chat as it is read.

        Raises:
            DataError: It fills the context, or the safety prompt's tokens are not found in it.
        """
        prompt = self._renderer.render(chat.with_safety_prompt(self._text))
        if len(prompt) > self._loaded.max_tokens:
            raise DataError(
                f"with its safety prompt a chat has {len(prompt)} tokens: the model takes at most "
                f"{self._loaded.max_tokens}; shorten it"
            )
        return Placed(prompt, self._renderer.safety_prompt_span(prompt, self._text))

    @torch.no_grad()
    def initial(self) -> Tensor:
        """Return the embeddings [token, d_model] of the safety prompt itself, float32 or finer."""
        ids = self._loaded.tokenizer(self._text, add_special_tokens=False)["input_ids"]
        embed = self._loaded.model.get_input_embeddings()
        own: Tensor = embed(torch.tensor(ids, device=self._loaded.device))
        return own.to(torch.promote_types(own.dtype, torch.float32))

    def batches(self, placed: Sequence[Placed]) -> Iterator[list[int]]:
        """Yield the rows of prompts that can be read together: of one head, and of like length."""
        order = sorted(range(len(placed)), key=lambda row: (placed[row].head, _rest(placed[row])))
        for _, alike in groupby(order, key=lambda row: placed[row].head):
            rows = list(alike)
            lengths = [_rest(placed[row]) for row in rows]
            for part in batches(lengths, budget=TOKENS_A_BATCH, is_padded=True):
                yield rows[part.start : part.stop]

    def states(self, placed: Sequence[Placed], embeddings: Tensor) -> Tensor:
        """Return the normed states [prompt, d_model] at the last tokens, in one batch.

        Args:
            placed: Of one head, as from `batches`.
            embeddings: [token, d_model], in place of the safety prompt's tokens. Gradients flow
                back to them, through a model whose weights take none.
        """
        head = shared_prefix([of.prompt for of in placed], [LAST])
        cache = DynamicCache()
        self._run(
            inputs_embeds=spliced(self._loaded, head, placed[0].where, embeddings)[None],
            past_key_values=cache,
        )
        if len(placed) > 1:
            cache.batch_repeat_interleave(len(placed))
        rests = [of.prompt.token_ids[len(head) :] for of in placed]
        longest = max(map(len, rests))
        padded = [[*ids, *ids[-1:] * (longest - len(ids))] for ids in rests]
        ids = torch.tensor(padded, device=self._loaded.device)
        found = self._run(input_ids=ids, past_key_values=cache)  # [prompt, token, d_model]
        last = torch.tensor([len(ids) - 1 for ids in rests], device=found.device)
        return found[torch.arange(len(rests), device=found.device), last].to(embeddings.dtype)

    @torch.no_grad()
    def all_states(self, placed: Sequence[Placed], embeddings: Tensor) -> Tensor:
        """Return the states [prompt, d_model] of any number of prompts, without gradients."""
        found = embeddings.new_empty(len(placed), embeddings.shape[1])
        for rows in self.batches(placed):
            found[rows] = self.states([placed[row] for row in rows], embeddings)
        return found

    def _run(self, **inputs: Any) -> Tensor:
        states: Tensor = self._loaded.parts.body(**inputs, use_cache=True)[0]
        return states


def _rest(placed: Placed) -> int:
    return len(placed.prompt) - placed.where.stop
