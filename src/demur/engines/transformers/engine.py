"""The engine proper: admits requests, runs the prefill once, and steps the running batch."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.interventions import EndReply, Intervention, PrependText, ReplyWith
from demur.core.protocols import (
    Done,
    Event,
    Monitor,
    Request,
    Scored,
    Switched,
    TokenOut,
)
from demur.core.readings import Array, Deferred, Readings, Values
from demur.core.reads import CaptureSpec, OwnPass, Read, Texts, in_prefill
from demur.core.types import Chat, ModelId, Prompt
from demur.engines._monitoring import failed, heed_monitor
from demur.engines._waiting import Waiting
from demur.engines.transformers.batch import Batch, Row
from demur.engines.transformers.sampling import draw
from demur.engines.transformers.text import TextStream
from demur.modeling.capture import capture, filling, recording
from demur.modeling.chat import ChatRenderer
from demur.modeling.last_logits import last_only
from demur.modeling.load import Dtype, LoadedModel, load
from demur.modeling.own_pass import OwnPasses


class TransformersEngine:
    """Runs a transformers model.

    Args:
        loaded: The model; it is never changed.
        max_batch: Most rows that decode together.
    """

    def __init__(self, loaded: LoadedModel, *, max_batch: int = 8) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._device = next(loaded.model.parameters()).device
        self._renderer = ChatRenderer(loaded.tokenizer, name=loaded.model_id.name)
        self._max_batch = max_batch
        self._max_tokens = loaded.max_tokens
        self._end_ids = _end_token_ids(loaded)
        self._own_passes = OwnPasses(loaded)

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded",
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        max_batch: int = 8,
    ) -> Self:
        """Load a model and make an engine of it.

        Args:
            source: `embedded`, a folder, a `.gguf` file, or a name on the model hub.
            dtype: `auto` is bfloat16 where the processor computes in it, else float32 on a CPU.
            device: `auto` is the first GPU, or else the CPU.
            max_batch: Most rows that decode together.

        Raises:
            ConfigError: There is no such model, or it has no chat template.
            MissingPackageError: The embedded model's package is not installed.
        """
        return cls(load(source, dtype=dtype, device=device), max_batch=max_batch)

    @property
    def loaded(self) -> LoadedModel:
        """The model, its tokenizer and its parts."""
        return self._loaded

    @property
    def model_id(self) -> ModelId:
        """What detectors are matched against."""
        return self._loaded.model_id

    @property
    def capabilities(self) -> frozenset[type]:
        """The reads and interventions that this engine can do."""
        return frozenset({CaptureSpec, Texts, OwnPass, ReplyWith, PrependText, EndReply, Monitor})

    @property
    def max_tokens(self) -> int:
        """The model's context: prompt and reply together."""
        return self._max_tokens

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model will read it.

        Raises:
            DataError: The chat ends in an assistant turn, has no user text, or fills the context.
        """
        prompt = self._renderer.render(chat)
        if len(prompt) >= self._max_tokens:
            raise DataError(
                f"the prompt has {len(prompt)} tokens: the model takes at most "
                f"{self._max_tokens - 1}, so that one is left for the reply; shorten it"
            )
        return prompt

    def with_reply(self, prompt: Prompt, reply: str) -> Prompt:
        """Return a prompt with a reply after it, as the model has read both.

        Raises:
            DataError: The reply is empty, or both are longer than the context.
        """
        longer = self._renderer.with_reply(prompt, reply)
        if len(longer) > self._max_tokens:
            raise DataError(
                f"prompt and reply have {len(longer)} tokens: the model takes at most "
                f"{self._max_tokens}; shorten them"
            )
        return longer

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; see `core.protocols.Engine.run`."""
        waiting = Waiting(requests)
        batch = Batch()
        while True:
            while len(batch) < self._max_batch and (request := waiting.next()) is not None:
                yield from self._admit(request, batch)
            if batch.rows:
                yield from self._step(batch)
            elif waiting.is_over:
                return

    def _admit(self, request: Request, batch: Batch) -> Iterator[Event]:
        """Read a request's prompt, decide, and let it join the batch unless it is done."""
        if request.is_abandoned():
            yield Done(request.id, "abandoned")
            return
        try:
            events = self._scored(request) if request.sampling.max_tokens == 0 else None
            if events is None:
                events = self._started(request, batch)
        except Exception as error:  # one request's failure is its own
            events = [failed(request, error)]
        yield from events

    def _scored(self, request: Request) -> list[Event]:
        started = time.perf_counter()
        readings = capture(self._loaded.parts, [request.prompt], in_prefill(request.reads))
        prefill_s = self._elapsed(started)
        started = time.perf_counter()
        request.decide(self._with_own_passes(readings, request))
        guard_s = time.perf_counter() - started
        return [Scored(request.id, prefill_s, guard_s), Done(request.id, "scored")]

    def _started(self, request: Request, batch: Batch) -> list[Event]:
        started = time.perf_counter()
        reads = in_prefill(request.reads)
        with recording(self._loaded.parts, [request.prompt], reads, starts=[0]) as recorder:
            logits, cache = self._prefill(request.prompt)
        prefill_s = self._elapsed(started) - recorder.seconds
        started = time.perf_counter()
        readings = recorder.readings() if reads else Readings({})
        intervention = request.decide(self._with_own_passes(readings, request))
        guard_s = time.perf_counter() - started + recorder.seconds
        events: list[Event] = [Scored(request.id, prefill_s, guard_s)]
        prompt = request.prompt
        if intervention is not None:
            events.append(Switched(request.id, intervention))
            if isinstance(intervention, ReplyWith):
                return [*events, *self._replaced(request, intervention, first=len(prompt))]
            if isinstance(intervention, EndReply):
                return [*events, Done(request.id, "ended")]
            prompt = self._changed(prompt, intervention)
            logits, cache = self._prefill(prompt)
        text = TextStream(self._tokenizer, request.sampling.stop)
        row = Row(request, text, len(prompt))
        events += self._advance(row, logits)
        if not isinstance(events[-1], Done):
            batch.join(row, cache)
        return events

    def _with_own_passes(self, readings: Readings, request: Request) -> Readings:
        """Add the passes of their own, which run only if a detector asks for them."""
        own: dict[Read, Values] = {
            read: Deferred(self._own_passes, read, (request.prompt.chat,))
            for read in request.reads
            if isinstance(read, OwnPass)
        }
        return Readings({**readings.values, **own}) if own else readings

    def _changed(self, prompt: Prompt, intervention: Intervention) -> Prompt:
        assert isinstance(intervention, PrependText), "the guard checked the capabilities"
        return self.render(prompt.chat.with_safety_prompt(intervention.text))

    def _replaced(
        self, request: Request, intervention: ReplyWith, *, first: int
    ) -> Iterator[Event]:
        ids = self._tokenizer(intervention.text, add_special_tokens=False)["input_ids"]
        text = TextStream(self._tokenizer)
        for number, token_id in enumerate(ids):
            shown = text.push(token_id, is_last=number == len(ids) - 1)
            yield TokenOut(request.id, first + number, token_id, shown, 0.0)
        yield Done(request.id, "replaced")

    def _step(self, batch: Batch) -> Iterator[Event]:
        """Advance every row by one token; rows that are done, or given up, leave."""
        yield from batch.dismiss_abandoned()
        if not batch.rows:
            return
        try:
            all_logits, states = self._forward(batch)
        except Exception as error:  # the pass is shared, and so is its failure
            ends = [failed(row.request, error) for row in batch.rows]
            batch.keep([])
            yield from ends
            return
        going_on: list[int] = []
        events: list[Event] = []
        for index, row in enumerate(batch.rows):
            row.length += 1
            of_row = list(self._watched(row, states.get(index)))
            if not (of_row and isinstance(of_row[-1], Done)):
                of_row += self._advance(row, all_logits[index])
            events += of_row
            if not isinstance(of_row[-1], Done):
                going_on.append(index)
        batch.keep(going_on)
        yield from events

    def _watched(self, row: Row, states: Array | None) -> Iterator[Event]:
        """Show a row's monitor, if it has one, the states [layer, d_model] of its newest token."""
        if states is not None:
            yield from heed_monitor(
                row.request,
                states,
                num_tokens=row.num_drawn,
                end=row.end,
                replace=partial(self._replaced, row.request, first=row.length),
            )

    def _advance(self, row: Row, logits: Tensor) -> list[Event]:
        """Draw a row's next token from the logits [vocabulary] of its last one.

        Returns:
            The token, and what ends the reply with it. A monitor is still to see a last token that
            is part of the text, so such a row goes on for a step.
        """
        drawn = draw(logits, row.request.sampling, row.generator)
        row.next_token = drawn.token_id
        row.num_drawn += 1
        is_end = drawn.token_id in self._end_ids
        is_full = (
            row.num_drawn >= row.request.sampling.max_tokens or row.length + 1 >= self._max_tokens
        )
        shown = row.text.push(drawn.token_id, is_last=is_end or is_full)
        token = TokenOut(row.request.id, row.length, drawn.token_id, shown, drawn.logprob)
        if not (is_end or row.text.is_stopped or is_full):
            return [token]
        done = Done(row.request.id, "stop" if is_end or row.text.is_stopped else "length")
        if is_end or row.request.monitor is None:
            return [token, done]
        row.end = done
        return [token]

    @torch.inference_mode()
    def _prefill(self, prompt: Prompt) -> tuple[Tensor, DynamicCache]:
        """Read a prompt; return the logits [vocabulary] of its last token, and the cache."""
        cache = DynamicCache()
        output = self._model(
            input_ids=torch.tensor([prompt.token_ids], device=self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last_only(len(prompt), device=self._device),
        )
        return output.logits[0, -1].float(), cache

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> tuple[Tensor, dict[int, Array]]:
        """Read each row's next token.

        Returns:
            The logits [row, vocabulary], and the states [layer, d_model] that monitors want, by
            row.
        """
        slots = batch.slots()
        with filling(self._loaded.parts, {spec: slot for spec, (_, slot) in slots.items()}):
            output = self._model(**batch.inputs(self._device), use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1].float()
        states = {
            row: of[:, 0]
            for rows, slot in slots.values()
            for row, of in zip(rows, slot.values(), strict=True)
        }
        return logits, states

    def _elapsed(self, started: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def _end_token_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end a reply: the tokenizer's, and those of the generation config."""
    named: Any = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids: Sequence[int | None] = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*ids, loaded.tokenizer.eos_token_id) if i is not None)
