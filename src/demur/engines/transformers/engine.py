"""The engine proper: admits requests, runs the prefill once, and steps the running batch."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import DataError
from demur.core.interventions import Intervention, PrependText, ReplyWith
from demur.core.protocols import Done, Event, Request, Scored, Switched, TokenOut, Waiting
from demur.core.readings import Deferred, Readings, Values
from demur.core.reads import CaptureSpec, OwnPass, Read, Texts, in_prefill
from demur.core.types import Chat, ModelId, Prompt
from demur.engines.transformers.batch import Batch, Row
from demur.engines.transformers.sampling import draw
from demur.engines.transformers.text import TextStream
from demur.modeling.capture import capture, recording
from demur.modeling.chat import ChatRenderer
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
        return frozenset({CaptureSpec, Texts, OwnPass, ReplyWith, PrependText})

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
            events = [Done(request.id, "error", f"{type(error).__name__}: {error}")]
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
                return [*events, *self._replaced(request, intervention)]
            prompt = self._changed(prompt, intervention)
            logits, cache = self._prefill(prompt)
        text = TextStream(self._tokenizer, request.sampling.stop)
        row = Row(request, text, len(prompt))
        token, done = self._advance(row, logits)
        if done is None:
            batch.join(row, cache)
            return [*events, token]
        return [*events, token, done]

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

    def _replaced(self, request: Request, intervention: ReplyWith) -> Iterator[Event]:
        ids = self._tokenizer(intervention.text, add_special_tokens=False)["input_ids"]
        text = TextStream(self._tokenizer)
        for number, token_id in enumerate(ids):
            shown = text.push(token_id, is_last=number == len(ids) - 1)
            yield TokenOut(request.id, len(request.prompt) + number, token_id, shown, 0.0)
        yield Done(request.id, "replaced")

    def _step(self, batch: Batch) -> Iterator[Event]:
        """Advance every row by one token; rows that are done, or given up, leave."""
        yield from batch.dismiss_abandoned()
        if not batch.rows:
            return
        try:
            all_logits = self._forward(batch)
        except Exception as error:  # the pass is shared, and so is its failure
            failed = [
                Done(row.request.id, "error", f"{type(error).__name__}: {error}")
                for row in batch.rows
            ]
            batch.keep([])
            yield from failed
            return
        going_on: list[int] = []
        events: list[Event] = []
        for index, row in enumerate(batch.rows):
            row.length += 1
            token, done = self._advance(row, all_logits[index])
            events.append(token)
            if done is None:
                going_on.append(index)
            else:
                events.append(done)
        batch.keep(going_on)
        yield from events

    def _advance(self, row: Row, logits: Tensor) -> tuple[TokenOut, Done | None]:
        """Draw a row's next token from the logits [vocabulary] of its last one."""
        drawn = draw(logits, row.request.sampling, row.generator)
        row.next_token = drawn.token_id
        row.num_drawn += 1
        is_end = drawn.token_id in self._end_ids
        is_full = (
            row.num_drawn >= row.request.sampling.max_tokens or row.length + 1 >= self._max_tokens
        )
        shown = row.text.push(drawn.token_id, is_last=is_end or is_full)
        token = TokenOut(row.request.id, row.length, drawn.token_id, shown, drawn.logprob)
        reason: Literal["stop", "length"] | None = None
        if is_end or row.text.is_stopped:
            reason = "stop"
        elif is_full:
            reason = "length"
        return token, None if reason is None else Done(row.request.id, reason)

    @torch.inference_mode()
    def _prefill(self, prompt: Prompt) -> tuple[Tensor, DynamicCache]:
        """Read a prompt; return the logits [vocabulary] of its last token, and the cache."""
        cache = DynamicCache()
        output = self._model(
            input_ids=torch.tensor([prompt.token_ids], device=self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].float(), cache

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> Tensor:
        """Read each row's next token; return the logits [row, vocabulary]."""
        output = self._model(**batch.inputs(self._device), use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _elapsed(self, started: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def _end_token_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end a reply: the tokenizer's, and those of the generation config."""
    named: Any = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids: Sequence[int | None] = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*ids, loaded.tokenizer.eos_token_id) if i is not None)
