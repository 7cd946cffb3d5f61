"""The forward passes of the engine: a prefill, and what goes on from it.

What a pass changes for a row is data (`Changes`); hooks carry it out and are gone after the pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import CapabilityError
from demur.core.reads import CaptureSpec, Checkpoint
from demur.modeling.adapters import Scaled, adapting
from demur.modeling.caches import fork
from demur.modeling.capture import Slot, filling
from demur.modeling.editing import Addition, adding, projecting
from demur.modeling.load import LoadedModel
from demur.modeling.output_head import finished
from demur.modeling.resuming import Trail, keeping, read_from

PROBE = range(8)
"""Tokens that tell whether a model can be resumed: any will do."""


@dataclass(frozen=True, eq=False)
class Changes:
    """What is changed for one row in each of its passes."""

    additions: tuple[Addition, ...] = ()
    """To its hidden states."""
    head: Tensor | None = None
    """Its output matrix [vocabulary, d_model]; None is the model's own."""
    adapter: Scaled | None = None
    """What is added to its linear maps."""


UNCHANGED = Changes()


@dataclass(frozen=True, eq=False)
class Prefill:
    """What was computed of a prompt."""

    token_ids: tuple[int, ...]
    """What was read."""
    logits: Tensor
    """Of the last token, [vocabulary], float32."""
    cache: DynamicCache
    head_input: Tensor = field(repr=False)
    """What the LM head saw of the last token, [d_model]."""
    head_output: Tensor = field(repr=False)
    """What it made of it, [vocabulary]; the model may have scaled or bent it afterwards."""
    trail: Trail = field(default_factory=Trail, repr=False)
    """What checkpoints kept."""


class Passes:
    """Runs a model.

    Args:
        loaded: The model; it is never changed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._head = loaded.model.get_output_embeddings()
        self._can_resume: dict[int, bool] = {}

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        embeddings: Tensor | None = None,
        changes: Changes = UNCHANGED,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> Prefill:
        """Read tokens from the start.

        Args:
            token_ids: Of a prompt, or of a prompt and its reply.
            embeddings: [position, d_model], in place of those of the tokens.
            changes: To what is computed of them.
            checkpoints: What to keep beside the cache.

        Raises:
            CapabilityError: The model cannot be changed so.
            ConfigError: There is no such block.
        """
        cache, seen = DynamicCache(), _HeadLog()
        with (
            self._under([changes]),
            keeping(self._loaded.parts, [of.layer for of in checkpoints]) as trail,
            self._head.register_forward_hook(seen.take),
        ):
            logits = self._loaded.last_logits(token_ids, cache=cache, embeddings=embeddings)
        return Prefill(tuple(token_ids), logits.float(), cache, *seen.last(), trail)

    def read_again(
        self, token_ids: Sequence[int], cache: DynamicCache, *, first: int, changes: Changes
    ) -> tuple[Tensor, DynamicCache]:
        """Read the end of a sequence once more; return the logits [vocabulary] of its last token.

        Args:
            token_ids: From the first position on that is read again.
            cache: Of all tokens; it is not changed.
            first: The position of the first of these.
            changes: To what is computed of them.

        Returns:
            The logits, float32, and the cache of all tokens.
        """
        longer = fork(cache, length=first)
        with self._under([changes]):
            logits = self._loaded.last_logits(token_ids, cache=longer)
        return logits.float(), longer

    def resume(self, prefill: Prefill, *, layer: int, changes: Changes) -> Prefill:
        """Read a prompt again under changes to nothing below a block.

        The blocks below are not run, if the block's input was kept and the model is one that can be
        resumed; else the whole prompt is read.

        Args:
            prefill: What came of the prompt; it is not changed.
            layer: The block.
            changes: To what is computed of it.

        Raises:
            CapabilityError: The model cannot be changed so.
        """
        if layer not in prefill.trail.inputs or not self.can_resume(layer):
            return self.prefill(prefill.token_ids, changes=changes)
        return self._resumed(prefill, layer, changes)

    def can_resume(self, layer: int) -> bool:
        """Tell whether going on from a block gives what the whole pass gives, tried out once."""
        if layer not in self._can_resume:
            whole = self.prefill(PROBE, checkpoints=[Checkpoint(layer)])
            again = self._resumed(whole, layer, UNCHANGED)
            self._can_resume[layer] = torch.allclose(
                again.logits, whole.logits, rtol=1e-2, atol=1e-2
            )
        return self._can_resume[layer]

    @torch.inference_mode()
    def _resumed(self, prefill: Prefill, layer: int, changes: Changes) -> Prefill:
        config = self._loaded.model.config.get_text_config(decoder=True)
        with self._under([changes]):
            normed, cache = read_from(self._loaded.parts, prefill.trail, layer, prefill.cache)
            raw = self._head(normed)[0, -1]
        logits = finished(raw.float(), config)
        return Prefill(prefill.token_ids, logits, cache, normed[0, -1], raw)

    @contextmanager
    def _under(self, changes: Sequence[Changes]) -> Iterator[None]:
        """Change what is computed for rows while the model runs inside the block, one a row."""
        additions = {row: of.additions for row, of in enumerate(changes) if of.additions}
        heads = {row: of.head for row, of in enumerate(changes) if of.head is not None}
        adapters = {row: of.adapter for row, of in enumerate(changes) if of.adapter is not None}
        with (
            adding(self._loaded.parts, additions),
            adapting(adapters, num_rows=len(changes)),
            projecting(self._head, heads),
        ):
            yield

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
        with self._under(changes), filling(self._loaded.parts, slots):
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
