"""The forward passes of the engine: a prefill, and what goes on from it.

What a pass changes for a row is data (`Changes`); hooks carry it out and are gone after the pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import CapabilityError
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
