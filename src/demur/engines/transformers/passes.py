"""The forward passes of the engine: a prefill, what goes on from it, and tries of several tokens.

What a pass changes for a row is data (`Changes`); hooks carry it out and are gone after the pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import CapabilityError
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.modeling.caches import fork
from demur.modeling.capture import Slot, filling
from demur.modeling.editing import Addition, adding, projecting
from demur.modeling.load import LoadedModel
from demur.modeling.output_head import finished


@dataclass(frozen=True, eq=False)
class Changes:
    """What is changed for one row in each of its passes."""

    additions: tuple[Addition, ...] = ()
    """To its hidden states."""
    head: Tensor | None = None
    """Its output matrix [vocabulary, d_model]; None is the model's own."""


UNCHANGED = Changes()


@dataclass(frozen=True, eq=False)
class Prefill:
    """What was computed of a prompt."""

    length: int
    """Tokens that were read."""
    logits: Tensor
    """Of the last token, [vocabulary], float32."""
    cache: DynamicCache
    head_input: Tensor = field(repr=False)
    """What the LM head saw of the last token, [d_model]."""
    head_output: Tensor = field(repr=False)
    """What it made of it, [vocabulary]; the model may have scaled or bent it afterwards."""


@dataclass(frozen=True, eq=False)
class Tries:
    """What would be after each of several tokens."""

    states: Mapping[CaptureSpec, Array]
    """By read, [token, layer, d_model], float32."""
    logits: Tensor
    """Of what would come next, [token, vocabulary], float32."""
    cache: DynamicCache
    """Of the tokens before, with a column a token."""

    def chosen(self, index: int) -> DynamicCache:
        """Return the cache after one of the tokens."""
        length = self.cache.get_seq_length() - len(self.logits)
        chosen = fork(self.cache)
        for layer in chosen.layers:
            layer.keys = _picked(layer.keys, length, index)
            layer.values = _picked(layer.values, length, index)
        return chosen


def _picked(tensor: Tensor, length: int, index: int) -> Tensor:
    """Return the first columns of keys or values [row, head, column, d_head], and one after."""
    return torch.cat([tensor[:, :, :length], tensor[:, :, length + index : length + index + 1]], 2)


class Passes:
    """Runs a model.

    Args:
        loaded: The model; it is never changed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._head = loaded.model.get_output_embeddings()

    def prefill(self, prompt: Prompt, *, embeddings: Tensor | None = None) -> Prefill:
        """Read a prompt.

        Args:
            prompt: Its tokens.
            embeddings: [position, d_model], in place of those of its tokens.
        """
        cache, seen = DynamicCache(), _HeadLog()
        with self._head.register_forward_hook(seen.take):
            logits = self._loaded.last_logits(prompt.token_ids, cache=cache, embeddings=embeddings)
        return Prefill(len(prompt), logits.float(), cache, *seen.last())

    def read_again(
        self, prompt: Prompt, prefill: Prefill, *, first: int, changes: Changes
    ) -> tuple[Tensor, DynamicCache]:
        """Read the end of a prompt once more; return the logits [vocabulary] of its last token.

        Args:
            prompt: Was read.
            prefill: What came of it; it is not changed.
            first: The position from which on tokens are read again.
            changes: To what is computed of them.

        Returns:
            The logits, float32, and the cache of all tokens.
        """
        longer = fork(prefill.cache, length=first)
        with adding(self._loaded.parts, {0: changes.additions}):
            logits = self._loaded.last_logits(prompt.token_ids[first:], cache=longer)
        return logits.float(), longer

    @torch.inference_mode()
    def under_head(self, prefill: Prefill, head: Tensor) -> Tensor:
        """Return the logits [vocabulary] that another output matrix gives of a prefill.

        Raises:
            CapabilityError: The model does something to its logits that is not known here.
        """
        config = self._loaded.model.config.get_text_config(decoder=True)
        own = finished(prefill.head_output.float(), config)
        if not torch.allclose(own, prefill.logits, rtol=1e-2, atol=1e-2):
            raise CapabilityError(
                f"{type(self._loaded.model).__name__} changes its logits after the LM head in a "
                "way that demur does not know: use another responder than one with its own head"
            )
        raw = torch.nn.functional.linear(prefill.head_input, head)
        return finished(raw.float(), config)

    @torch.inference_mode()
    def step(
        self,
        inputs: Mapping[str, Any],
        changes: Sequence[Changes],
        slots: Mapping[CaptureSpec, Slot],
    ) -> Tensor:
        """Read one token a row, and return the logits [row, vocabulary], float32.

        Args:
            inputs: Of the model.
            changes: One a row.
            slots: Filled on the way.
        """
        additions = {row: of.additions for row, of in enumerate(changes) if of.additions}
        heads = {row: of.head for row, of in enumerate(changes) if of.head is not None}
        with (
            adding(self._loaded.parts, additions),
            projecting(self._head, heads),
            filling(self._loaded.parts, slots),
        ):
            output = self._loaded.model(**inputs, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    @torch.inference_mode()
    def tries(
        self, cache: DynamicCache, token_ids: Sequence[int], reads: Iterable[CaptureSpec]
    ) -> Tries:
        """Read several tokens, each as if it alone came next, in one pass.

        Args:
            cache: Of what came before; it is not changed.
            token_ids: All at the same position; none attends to another.
            reads: What to keep of each.
        """
        length, tries = cache.get_seq_length(), fork(cache)
        rows = [[index] for index in range(len(token_ids))]
        slots = {read: Slot(at_last(read), rows) for read in reads}
        with filling(self._loaded.parts, slots):
            output = self._loaded.model(
                input_ids=torch.tensor([token_ids], device=self._loaded.device),
                attention_mask=self._apart(length, len(token_ids)),
                position_ids=torch.full((1, len(token_ids)), length, device=self._loaded.device),
                past_key_values=tries,
                use_cache=True,
            )
        states = {read: np.asarray(slot.values()) for read, slot in slots.items()}
        return Tries(states, output.logits[0].float(), tries)

    def _apart(self, length: int, num_tokens: int) -> Tensor | dict[str, Tensor]:
        """Return a mask under which each new token sees what came before, and itself."""
        config = self._loaded.model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if not kinds:
            return self._mask(length, num_tokens, window=window)
        masks = {
            kind: self._mask(length, num_tokens, window=window if "sliding" in kind else None)
            for kind in kinds
        }
        return masks if len(masks) > 1 or "sliding_attention" in masks else masks.popitem()[1]

    def _mask(self, length: int, num_tokens: int, *, window: int | None) -> Tensor:
        """Return an additive mask [1, 1, token, column]."""
        dtype = self._loaded.model.dtype
        closed = torch.finfo(dtype).min
        before = torch.zeros(num_tokens, length, dtype=dtype)
        if window is not None:
            before[:, : max(0, length - window + 1)] = closed
        among = torch.full((num_tokens, num_tokens), closed, dtype=dtype).fill_diagonal_(0)
        return torch.cat([before, among], 1)[None, None].to(self._loaded.device)


class _HeadLog:
    """What the LM head saw and made last."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []

    def take(self, _head: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep them, as a forward hook."""
        self._seen.append((inputs[0][0, -1], output[0, -1]))

    def last(self) -> tuple[Tensor, Tensor]:
        """Return them, [d_model] and [vocabulary]."""
        return self._seen[-1]


def at_last(read: CaptureSpec) -> CaptureSpec:
    """Return a read of a reply's tokens as one of a single token: [token, layer, d_model]."""
    return replace(read, positions="last", pool="none")
