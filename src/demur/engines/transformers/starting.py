"""Lets a flagged request go on under an intervention, from as much of its prefill as it keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import (
    AddVectors,
    Draft,
    Intervention,
    PrependEmbeddings,
    PrependText,
    RerankTokens,
    SwapHead,
    UseAdapter,
)
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt
from demur.engines.transformers.passes import UNCHANGED, Changes, Passes, Prefill
from demur.engines.transformers.reranking import ByDraft, ByModel, Lookahead
from demur.modeling.adapters import Adapters, Scaled
from demur.modeling.caches import fork
from demur.modeling.chat import ChatRenderer
from demur.modeling.draft import DraftHead
from demur.modeling.editing import Addition
from demur.modeling.load import LoadedModel
from demur.modeling.reranking import Reranking
from demur.modeling.soft_prompts import spliced
from demur.modeling.tensors import Tensors
from demur.modeling.tries import read_on


@dataclass(frozen=True, eq=False)
class Start:
    """From where a reply is drawn."""

    length: int
    """Of what the model has read, in tokens."""
    logits: Tensor
    """[vocabulary], float32."""
    cache: DynamicCache
    changes: Changes = UNCHANGED
    lookahead: Lookahead | None = None
    """Chooses the tokens, where that takes passes of its own."""
    token_ids: tuple[int, ...] | None = None
    """What the model has read, where reading it again gives the same; None where something else
    took the place of tokens, or some of them alone were changed."""

    @classmethod
    def of(cls, prefill: Prefill) -> "Start":
        """Go on from a prefill as it is."""
        ids = prefill.token_ids
        return cls(len(ids), prefill.logits, prefill.cache, token_ids=ids)


@dataclass(frozen=True, eq=False)
class Underway:
    """A reply that is being drawn."""

    prompt_ids: tuple[int, ...] | None
    """As of the `Start` that it began from."""
    drawn_ids: Sequence[int]
    """Of the reply so far; the model has read them all."""
    cache: DynamicCache
    """Of all of them; it is not changed."""
    changes: Changes


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
        self._adapters = Adapters(loaded)
        self._drafts: dict[tuple[Draft, CaptureSpec], DraftHead] = {}

    def prepare(self, intervention: Intervention) -> None:
        """Load what an intervention refers to.

        Raises:
            ConfigError: There is no such artifact.
            DataError: It has changed, or does not fit the model.
        """
        if isinstance(intervention, AddVectors):
            self._additions(intervention)
        elif isinstance(intervention, SwapHead):
            self._head(intervention)
        elif isinstance(intervention, UseAdapter):
            self._adapters.get(intervention.adapter)
            if intervention.checkpoint is not None:
                self._passes.can_resume(intervention.checkpoint.layer)
        elif isinstance(intervention, RerankTokens):
            rule = self._reranking(intervention)
            if intervention.draft is not None:
                self._draft(intervention.draft, rule.read)

    def start(self, prompt: Prompt, prefill: Prefill, intervention: Intervention) -> Start:
        """Return from where a prompt is answered under an intervention.

        Args:
            prompt: Was read.
            prefill: What came of it; it is not changed.
            intervention: One that draws tokens.

        Raises:
            CapabilityError: The model cannot do it.
            DataError: The intervention's tensors do not fit the model, or the prompt is too long.
            ModelMismatchError: Its adapter does not fit the model.
        """
        if isinstance(intervention, UseAdapter):
            return self._adapted(prefill, intervention)
        if isinstance(intervention, AddVectors):
            return self._steered(prompt, prefill, intervention)
        if isinstance(intervention, SwapHead):
            head = self._head(intervention)
            logits = self._passes.under_head(prefill, head)
            return replace(Start.of(prefill), logits=logits, changes=Changes(head=head))
        if isinstance(intervention, RerankTokens):
            lookahead = self._lookahead(prompt, prefill, intervention)
            return replace(Start.of(prefill), lookahead=lookahead)
        if isinstance(intervention, PrependEmbeddings):
            return self._prompted(prompt, intervention)
        assert isinstance(intervention, PrependText), "the guard checked the capabilities"
        return Start.of(self._passes.prefill(self._under(prompt, intervention.text).token_ids))

    def switch(self, reply: Underway, intervention: UseAdapter) -> Start | None:
        """Return from where a reply that is under way goes on under an adapter.

        Args:
            reply: So far; its changes stay in force, but for an adapter.
            intervention: What comes now.

        Returns:
            The start; None if nothing changes.

        Raises:
            CapabilityError: The reply cannot be read again, or the model cannot be changed so.
            DataError: The adapter's files have changed.
            ModelMismatchError: The adapter does not fit the model.
        """
        scaled = self._scaled(intervention)
        if scaled is None and reply.changes.adapter is None:
            return None
        changes = replace(reply.changes, adapter=scaled)
        length = reply.cache.get_seq_length()
        if intervention.cache == "keep":
            logits, cache = self._passes.read_again(
                reply.drawn_ids[-1:], reply.cache, first=length - 1, changes=changes
            )
            return Start(length, logits, cache, changes)
        if reply.prompt_ids is None:
            raise CapabilityError(
                "the reply began under vectors or embeddings, and reading it again from its start "
                "would not give the same: switch with cache='keep'"
            )
        ids = [*reply.prompt_ids, *reply.drawn_ids]
        logits, cache = self._passes.read_again(ids, reply.cache, first=0, changes=changes)
        return Start(length, logits, cache, changes)

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
        logits, cache = self._passes.read_again(
            prompt.token_ids[first:], prefill.cache, first=first, changes=changes
        )
        return Start(len(prompt), logits, cache, changes)

    def _adapted(self, prefill: Prefill, intervention: UseAdapter) -> Start:
        scaled = self._scaled(intervention)
        if scaled is None:
            return Start.of(prefill)
        changes = Changes(adapter=scaled)
        layer = intervention.adapter.first_layer
        again = self._passes.resume(prefill, layer=layer, changes=changes)
        return replace(Start.of(again), changes=changes)

    def _scaled(self, intervention: UseAdapter) -> Scaled | None:
        """Return an adapter with its scale; None if it adds nothing."""
        adapter = self._adapters.get(intervention.adapter)
        return Scaled(adapter, intervention.scale) if intervention.scale else None

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

    def _lookahead(self, prompt: Prompt, prefill: Prefill, intervention: RerankTokens) -> Lookahead:
        rule = self._reranking(intervention)
        if intervention.draft is None:
            return ByModel(rule, prefill.logits, prefill.cache)
        draft = self._draft(intervention.draft, rule.read)
        # The last token is read again: the prefill kept no state of it.
        cache = fork(prefill.cache, length=len(prompt) - 1)
        _, states = read_on(self._loaded, prompt.token_ids[-1:], cache, [rule.read])
        state = torch.from_numpy(states[rule.read][0])
        return ByDraft(rule, draft, prefill.logits, prefill.cache, state)

    def _draft(self, draft: Draft, read: CaptureSpec) -> DraftHead:
        if (draft, read) not in self._drafts:
            head = DraftHead(self._loaded, read)
            shapes = {name: tuple(tensor.shape) for name, tensor in head.tensors().items()}
            refs = {ref.key: ref for ref in draft.tensors}
            if set(refs) != set(shapes):
                raise DataError(
                    f"the draft lacks {sorted(set(shapes) - set(refs))} and has "
                    f"{sorted(set(refs) - set(shapes))} too many: train it again on this model"
                )
            head.load(
                {
                    name: self._tensors.get(refs[name], shape=shape, dtype=head.dtype)
                    for name, shape in shapes.items()
                }
            )
            self._drafts[draft, read] = head
        return self._drafts[draft, read]

    @torch.inference_mode()
    def _prompted(self, prompt: Prompt, intervention: PrependEmbeddings) -> Start:
        longer = self._under(prompt, intervention.text)
        where = self._renderer.safety_prompt_span(longer, intervention.text)
        shape = (where.stop - where.start, self._loaded.parts.d_model)
        theirs = self._tensors.get(intervention.embeddings, shape=shape)
        embeddings = spliced(self._loaded, longer.token_ids, where, theirs)
        prefill = self._passes.prefill(longer.token_ids, embeddings=embeddings)
        return replace(Start.of(prefill), token_ids=None)
