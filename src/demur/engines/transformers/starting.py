"""Lets a flagged request go on under an intervention, from as much of its prefill as it keeps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.interventions import (
    AddVectors,
    Intervention,
    PrependEmbeddings,
    PrependText,
    RerankTokens,
    SwapHead,
)
from demur.core.types import Chat, Prompt
from demur.engines.transformers.passes import UNCHANGED, Changes, Passes, Prefill
from demur.engines.transformers.reranking import Reranking
from demur.modeling.chat import ChatRenderer
from demur.modeling.editing import Addition
from demur.modeling.load import LoadedModel
from demur.modeling.soft_prompts import spliced
from demur.modeling.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Start:
    """From where a reply is drawn."""

    length: int
    """Tokens that the model has read."""
    logits: Tensor
    """[vocabulary], float32."""
    cache: DynamicCache
    changes: Changes = UNCHANGED
    reranking: Reranking | None = None

    @classmethod
    def of(cls, prefill: Prefill) -> "Start":
        """Go on from a prefill as it is."""
        return cls(prefill.length, prefill.logits, prefill.cache)


class Starter:
    """Carries out interventions on what was read.

    Args:
        loaded: The model.
        renderer: Of its template.
        render: Renders chats that fit into the context.
        passes: Run the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        render: Callable[[Chat], Prompt],
        passes: Passes,
    ) -> None:
        self._loaded = loaded
        self._renderer = renderer
        self._render = render
        self._passes = passes
        self._tensors = Tensors(loaded.device)

    def start(self, prompt: Prompt, prefill: Prefill, intervention: Intervention) -> Start:
        """Return from where a prompt is answered under an intervention.

        Args:
            prompt: Was read.
            prefill: What came of it; it is not changed.
            intervention: One that draws tokens.

        Raises:
            CapabilityError: The model cannot do it.
            DataError: The intervention's tensors do not fit the model, or the prompt is too long.
        """
        if isinstance(intervention, AddVectors):
            return self._steered(prompt, prefill, intervention)
        if isinstance(intervention, SwapHead):
            head = self._head(intervention)
            logits = self._passes.under_head(prefill, head)
            return replace(Start.of(prefill), logits=logits, changes=Changes(head=head))
        if isinstance(intervention, RerankTokens):
            return replace(Start.of(prefill), reranking=self._reranking(intervention))
        if isinstance(intervention, PrependEmbeddings):
            return self._prompted(prompt, intervention)
        assert isinstance(intervention, PrependText), "the guard checked the capabilities"
        return Start.of(self._passes.prefill(self._under(prompt, intervention.text)))

    def _under(self, prompt: Prompt, text: str) -> Prompt:
        """Return the prompt with a safety prompt.

        Raises:
            DataError: It fills the context, or the template refuses it.
        """
        try:
            return self._render(prompt.chat.with_safety_prompt(text))
        except DataError as error:
            raise DataError(f"with its safety prompt {error}") from error

    def _steered(self, prompt: Prompt, prefill: Prefill, intervention: AddVectors) -> Start:
        if intervention.scale == 0:
            return Start.of(prefill)
        changes = Changes(self._additions(intervention))
        first = intervention.first_position(prompt)
        logits, cache = self._passes.read_again(prompt, prefill, first=first, changes=changes)
        return Start(len(prompt), logits, cache, changes)

    def _additions(self, intervention: AddVectors) -> tuple[Addition, ...]:
        shape = (len(intervention.layers), self._loaded.parts.d_model)
        vectors = self._tensors.get(intervention.vectors, shape=shape) * intervention.scale
        gates: Tensor | list[None] = [None] * len(vectors)
        if intervention.gates is not None:
            gates = self._tensors.get(intervention.gates, shape=shape)
        return tuple(
            Addition(layer, vector, gate)
            for layer, vector, gate in zip(intervention.layers, vectors, gates, strict=True)
        )

    def _head(self, intervention: SwapHead) -> Tensor:
        own = self._loaded.model.get_output_embeddings().weight
        return self._tensors.get(intervention.weights, shape=tuple(own.shape), dtype=own.dtype)

    def _reranking(self, intervention: RerankTokens) -> Reranking:
        weights = self._tensors.get(intervention.weights, shape=(self._loaded.parts.d_model,))
        return Reranking(
            intervention.top_k,
            intervention.read,
            intervention.sign * weights,
            intervention.lm_weight,
        )

    @torch.inference_mode()
    def _prompted(self, prompt: Prompt, intervention: PrependEmbeddings) -> Start:
        longer = self._under(prompt, intervention.text)
        where = self._renderer.safety_prompt_span(longer, intervention.text)
        shape = (where.stop - where.start, self._loaded.parts.d_model)
        theirs = self._tensors.get(intervention.embeddings, shape=shape)
        embeddings = spliced(self._loaded, longer.token_ids, where, theirs)
        return Start.of(self._passes.prefill(longer, embeddings=embeddings))
