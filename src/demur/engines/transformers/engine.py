"""The engine proper: admits requests, runs the prefill once, and steps the running batch."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Self, get_args

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import EndReply, Intervention, ReplyWith, UseAdapter
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
from demur.core.reads import (
    Checkpoint,
    ExtraRead,
    OwnPass,
    Read,
    TentativeRead,
    in_prefill,
)
from demur.core.types import Chat, Dtype, ModelId, Prompt
from demur.engines._monitoring import failed, heed_monitor
from demur.engines._text import TextStream, text_events
from demur.engines._waiting import Waiting
from demur.engines.transformers.batch import Batch, RerankedRow, Row
from demur.engines.transformers.passes import Passes
from demur.engines.transformers.reranking import try_all
from demur.engines.transformers.sampling import Drawn, draw
from demur.engines.transformers.starting import Start, Starter, Underway
from demur.modeling.capture import capture, recording
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel, load
from demur.modeling.own_pass import OwnPasses
from demur.modeling.tentative import TentativeReads
from demur.modeling.tries import Tried

CAPABILITIES: frozenset[type] = frozenset(
    {*get_args(Read), *get_args(Intervention), Monitor, Checkpoint}
)


class TransformersEngine:
    """Runs a transformers model.

    Args:
        loaded: The model; it is never changed.
        max_batch: Most rows that decode together.
    """

    def __init__(self, loaded: LoadedModel, *, max_batch: int = 8) -> None:
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._device = loaded.device
        self._renderer = ChatRenderer.of(loaded)
        self._max_batch = max_batch
        self._max_tokens = loaded.max_tokens
        self._end_ids = loaded.end_token_ids
        self._own_passes = OwnPasses(loaded)
        self._tentative = TentativeReads(loaded, self._renderer)
        self._passes = Passes(loaded)
        self._starter = Starter(loaded, self._renderer, self.render, self._passes)

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
        return CAPABILITIES

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

    def prepare(self, interventions: Iterable[Intervention]) -> None:
        """Load what interventions refer to, so that no request waits for it.

        Raises:
            ConfigError: There is no such artifact.
            DataError: An artifact has changed, or does not fit the model.
            ModelMismatchError: An adapter does not fit the model.
        """
        for intervention in interventions:
            self._starter.prepare(intervention)

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; see `core.protocols.Engine.run`."""
        waiting = Waiting(requests)
        batch = Batch()
        while True:
            while len(batch) < self._max_batch and (request := waiting.next()) is not None:
                yield from self._admit(request, batch)
            if len(batch):
                yield from self._step(batch)
            elif waiting.is_over:
                return

    def _admit(self, request: Request, batch: Batch) -> Iterator[Event]:
        """Read a request's prompt, decide, and let it join the batch unless it is done."""
        if request.is_abandoned():
            yield Done(request.id, "abandoned")
            return
        try:
            events = self._scored(request) if _needs_no_cache(request) else None
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
        request.decide(self._with_extras(readings, request))
        guard_s = time.perf_counter() - started
        return [Scored(request.id, prefill_s, guard_s), Done(request.id, "scored")]

    def _started(self, request: Request, batch: Batch) -> list[Event]:
        started = time.perf_counter()
        prompt, reads = request.prompt, in_prefill(request.reads)
        with recording(self._loaded.parts, [prompt], reads, starts=[0]) as recorder:
            prefill = self._passes.prefill(prompt.token_ids, checkpoints=request.checkpoints)
        prefill_s = self._elapsed(started) - recorder.seconds
        started = time.perf_counter()
        readings = recorder.readings() if reads else Readings({})
        with self._tentative.holding(prompt, prefill.logits, prefill.cache):
            intervention = request.decide(self._with_extras(readings, request))
        guard_s = time.perf_counter() - started + recorder.seconds
        events: list[Event] = [Scored(request.id, prefill_s, guard_s)]
        if request.sampling.max_tokens == 0:
            return [*events, Done(request.id, "scored")]
        start = Start.of(prefill)
        if intervention is not None:
            events.append(Switched(request.id, intervention))
            if isinstance(intervention, ReplyWith):
                return [*events, *self._replaced(request, intervention, first=len(prompt))]
            if isinstance(intervention, EndReply):
                return [*events, Done(request.id, "ended")]
            start = self._starter.start(prompt, prefill, intervention)
        return [*events, *self._joined(request, start, batch)]

    def _joined(self, request: Request, start: Start, batch: Batch) -> list[Event]:
        """Draw a request's first token, and let it join the batch unless it is done."""
        text = TextStream(self._tokenizer, request.sampling.stop)
        if start.lookahead is not None:
            row = RerankedRow(request, text, start.length, lookahead=start.lookahead)
            batch.reranked.append(row)
            return []
        plain = Row(request, text, start.length, start.changes, start.token_ids)
        events = self._advance(plain, start.logits)
        if not isinstance(events[-1], Done):
            batch.join(plain, start.cache)
        return events

    def _with_extras(self, readings: Readings, request: Request) -> Readings:
        """Add what costs more than the prefill, which runs only if a detector asks for it."""
        extras: dict[Read, Values] = {
            read: Deferred(
                self._own_passes if isinstance(read, OwnPass) else self._tentative,
                read,
                (request.prompt.chat,),
            )
            for read in request.reads
            if isinstance(read, ExtraRead)
        }
        return Readings({**readings.values, **extras}) if extras else readings

    def _replaced(
        self, request: Request, intervention: ReplyWith, *, first: int
    ) -> Iterator[Event]:
        return text_events(self._tokenizer, request.id, intervention.text, first=first)

    def _step(self, batch: Batch) -> Iterator[Event]:
        """Advance every row by one token; rows that are done, or given up, leave."""
        yield from batch.dismiss_abandoned()
        yield from self._step_reranked(batch)
        if not batch.rows:
            return
        try:
            all_logits, states = batch.forward(self._passes, self._device)
        except Exception as error:  # the pass is shared, and so is its failure
            ends = [failed(row.request, error) for row in batch.rows]
            batch.keep([])
            yield from ends
            return
        going_on: list[int] = []
        switched: list[tuple[Row, DynamicCache]] = []
        events: list[Event] = []
        for index, row in enumerate(batch.rows):
            row.length += 1
            switch = partial(self._switch, row, partial(batch.cache_of, index))
            of_row = list(self._watched(row, states.get(index), switch))
            start, row.restart = row.restart, None
            if not (of_row and isinstance(of_row[-1], Done)):
                of_row += self._advance(row, start.logits if start else all_logits[index])
            events += of_row
            if isinstance(of_row[-1], Done):
                continue
            if start is None:
                going_on.append(index)
            else:
                switched.append((row, start.cache))
        batch.keep(going_on)
        for row, cache in switched:
            batch.join(row, cache)
        yield from events

    def _switch(
        self, row: Row, cache: Callable[[], DynamicCache], intervention: UseAdapter
    ) -> None:
        """Put the rest of a row's reply under an adapter."""
        reply = Underway(row.prompt_ids, row.drawn_ids, cache(), row.changes)
        row.restart = self._starter.switch(reply, intervention)
        if row.restart is not None:
            row.changes = row.restart.changes

    def _step_reranked(self, batch: Batch) -> Iterator[Event]:
        """Advance the rows whose tokens are tried before one is taken."""
        rows, batch.reranked = batch.reranked, []
        going_on: list[RerankedRow] = []
        tried = try_all(self._loaded, [row.lookahead.asks(row.also) for row in rows])
        for row, of_row in zip(rows, tried, strict=True):
            events = _of_its_own(row, partial(self._chosen, row, of_row))
            if not isinstance(events[-1], Done):
                going_on.append(row)
            yield from events
        read = try_all(self._loaded, [row.lookahead.goes_on(row.also) for row in going_on])
        for row, of_row in zip(going_on, read, strict=True):
            events = _of_its_own(row, partial(self._gone_on, row, of_row))
            if not (events and isinstance(events[-1], Done)):
                batch.reranked.append(row)
            yield from events

    def _chosen(self, row: RerankedRow, tried: Tried | Exception | None) -> list[Event]:
        """Take one of the tokens that were tried."""
        return self._take(row, row.lookahead.choose(_unless_failed(tried)))

    def _gone_on(self, row: RerankedRow, tried: Tried | Exception | None) -> list[Event]:
        """Go on from the token that was taken, which the monitor is shown."""
        states = row.lookahead.take(_unless_failed(tried))
        row.length += 1
        of_monitor = [states[read][0] for read in row.also]
        return list(self._watched(row, next(iter(of_monitor), None), _cannot_switch))

    def _watched(
        self, row: Row, states: Array | None, switch: Callable[[UseAdapter], None]
    ) -> Iterator[Event]:
        """Show a row's monitor, if it has one, the states [layer, d_model] of its newest token."""
        if states is not None:
            yield from heed_monitor(
                row.request,
                states,
                num_tokens=row.num_drawn,
                end=row.end,
                replace=partial(self._replaced, row.request, first=row.length),
                switch=switch,
            )

    def _advance(self, row: Row, logits: Tensor) -> list[Event]:
        """Draw a row's next token from the logits [vocabulary] of its last one.

        Returns:
            The token, and what ends the reply with it. A monitor is still to see a last token that
            is part of the text, so such a row goes on for a step.
        """
        return self._take(row, draw(logits, row.request.sampling, row.generator))

    def _take(self, row: Row, drawn: Drawn) -> list[Event]:
        """Take a token as a row's next one; see `_advance`."""
        row.drawn_ids.append(drawn.token_id)
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

    def _elapsed(self, started: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def _of_its_own(row: Row, work: Callable[[], list[Event]]) -> list[Event]:
    """Return what comes of some work; one request's failure is its own."""
    try:
        return work()
    except Exception as error:
        return [failed(row.request, error)]


def _unless_failed(tried: Tried | Exception | None) -> Tried | None:
    if isinstance(tried, Exception):
        raise tried
    return tried


def _cannot_switch(intervention: UseAdapter) -> None:
    raise CapabilityError(
        "a reply whose tokens are reranked cannot go on under an adapter: end it, or put a text in "
        "its place"
    )


def _needs_no_cache(request: Request) -> bool:
    """Tell whether nothing is read after a request's prompt: no token, no tentative step."""
    tentative = any(isinstance(read, TentativeRead) for read in request.reads)
    return request.sampling.max_tokens == 0 and not tentative
