"""The engine proper: hands requests to vLLM, and lets them be judged before their first token."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import EndReply, Intervention, PrependText, ReplyWith
from demur.core.preparing import Loadable
from demur.core.protocols import Done, Event, Request, Scored, Switched
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Read, Texts
from demur.core.types import Chat, Dtype, ModelId, Prompt
from demur.engines._columns import LAST, Columns, spans_of
from demur.engines._monitoring import failed
from demur.engines._text import TextStream, text_events
from demur.engines._waiting import Waiting
from demur.engines.vllm.adapters import engine_arguments
from demur.engines.vllm.again import InPlace, Wanted
from demur.engines.vllm.arguments import guarded
from demur.engines.vllm.prefixes import NEEDED_FROM, guard_cache, needed_from
from demur.engines.vllm.reader import CONFIG_KEY, Forced, Reader, reader_of
from demur.engines.vllm.rows import Known, Row, sampling_params
from demur.engines.vllm.steering import STEERED
from demur.modeling.load import load, locate

CAPABILITIES: frozenset[type] = frozenset({CaptureSpec, Texts, ReplyWith, EndReply, PrependText})
ReadoutsOf = Callable[[ModelId], Sequence[LinearReadout]]
LoadableOf = Callable[[ModelId], Iterable[Loadable]]


class VllmEngine:
    """Runs a chat model in vLLM.

    Args:
        engine: vLLM's, in this process, with one of the guarded workers.
        columns: What its model computes.
        known: What transformers told of the model.
        max_batch: Most requests that vLLM is given at a time.
        in_place: What it has loaded for flagged requests.
    """

    def __init__(
        self,
        engine: LLMEngine,
        columns: Columns,
        *,
        known: Known,
        max_batch: int,
        in_place: InPlace,
    ) -> None:
        self._engine = engine
        self._columns = columns
        self._known = known
        self._tokenizer = known.tokenizer
        self._max_batch = max_batch
        self._in_place = in_place
        self._block_size = int(engine.vllm_config.cache_config.block_size)
        self._rows: dict[str, Row] = {}
        self.num_cache_bypassed = 0
        """Requests that did not read the prefix cache, since a mean was asked for over tokens of
        its first block."""

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded",
        *,
        readouts: Sequence[LinearReadout] | ReadoutsOf = (),
        interventions: Iterable[Loadable] | LoadableOf = (),
        dtype: Dtype = "auto",
        max_batch: int = 32,
        max_tokens: int | None = None,
        is_eager: bool = False,
        options: dict[str, Any] | None = None,
    ) -> Self:
        """Load a model into vLLM.

        The model is loaded by transformers first, and let go of: its weights are hashed so.

        Args:
            source: `embedded`, a folder, a `.gguf` file, or a name on the model hub.
            readouts: Of all detectors to serve, or what names them once the model is known.
            interventions: Adapters, beside which vLLM compiles nothing without a GPU, and vectors
                of any scale, without a GPU only, under which flagged requests may be answered.
            dtype: `auto` is what the transformers engine would take.
            max_batch: Most requests at a time.
            max_tokens: The context; None is the model's own.
            is_eager: Compile nothing.
            options: More fields of vLLM's `EngineArgs`.

        Raises:
            CapabilityError: A read-out cannot be computed inside the model, an adapter or vectors
                cannot be run, or an option is one that demur does not guard.
            ConfigError: There is no such model or artifact, or it has no chat template.
            DataError: An artifact has changed, or does not fit the model.
        """
        loaded = load(source, dtype=dtype, device="cpu")
        found = readouts(loaded.model_id) if callable(readouts) else readouts
        columns = Columns.of(found, num_blocks=len(loaded.parts.blocks))
        run = interventions(loaded.model_id) if callable(interventions) else interventions
        wanted = Wanted.of(run, loaded.parts)
        known, longest = Known.of(loaded), min(max_tokens or loaded.max_tokens, loaded.max_tokens)
        del loaded
        gc.collect()
        args = guarded(
            columns,
            wanted.steerings.room(),
            {
                "model": locate(source)[0],
                "dtype": known.model_id.dtype,
                "max_model_len": longest,
                "max_num_seqs": max_batch,
                "enforce_eager": is_eager,
                "disable_log_stats": True,
                **engine_arguments(wanted.adapters),
                **(options or {}),
            },
        )
        engine = LLMEngine.from_engine_args(args)
        guard_cache(engine)
        return cls(
            engine, columns, known=known, max_batch=max_batch, in_place=wanted.put_into(engine)
        )

    def taking(self, max_batch: int) -> Self:
        """Return an engine that hands the same vLLM so many requests at a time, not at once."""
        return type(self)(
            self._engine,
            self._columns,
            known=self._known,
            max_batch=max_batch,
            in_place=self._in_place,
        )

    @property
    def reader(self) -> Reader:
        """What follows the prompts inside the worker."""
        return reader_of(self._engine)

    @property
    def reads(self) -> frozenset[CaptureSpec]:
        """The captures that can be answered: those of the read-outs."""
        return self._columns.specs

    @property
    def model_id(self) -> ModelId:
        """What detectors are matched against."""
        return self._known.model_id

    @property
    def capabilities(self) -> frozenset[type]:
        """The reads and interventions that this engine can do.

        Of captures those alone that one of its read-outs has: see `engines._columns`. Of adapters
        and vectors those that were named when it was loaded.
        """
        return CAPABILITIES | self._in_place.capabilities

    @property
    def max_tokens(self) -> int:
        """The model's context: prompt and reply together."""
        return int(self._engine.model_config.max_model_len)

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model will read it.

        Raises:
            DataError: The chat ends in an assistant turn, has no user text, or fills the context.
        """
        prompt = self._known.renderer.render(chat)
        if len(prompt) >= self.max_tokens:
            raise DataError(
                f"the prompt has {len(prompt)} tokens: the model takes at most "
                f"{self.max_tokens - 1}, so that one is left for the reply; shorten it"
            )
        return prompt

    def with_reply(self, prompt: Prompt, reply: str) -> Prompt:
        """Return a prompt with a reply after it, as the model has read both.

        Raises:
            DataError: The reply is empty, or both are longer than the context.
        """
        longer = self._known.renderer.with_reply(prompt, reply)
        if len(longer) >= self.max_tokens:
            raise DataError(
                f"prompt and reply have {len(longer)} tokens: the engine takes at most "
                f"{self.max_tokens - 1}; shorten them"
            )
        return longer

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; see `core.protocols.Engine.run`."""
        waiting = Waiting(requests)
        self.reader.judge = self._judge
        try:
            while True:
                while len(self._rows) < self._max_batch:
                    request = waiting.next()
                    if request is None:
                        break
                    yield from self._admit(request)
                if self._rows:
                    yield from self._step()
                elif waiting.is_over:
                    return
        finally:
            self._drop(list(self._rows))

    def _admit(self, request: Request) -> Iterator[Event]:
        """Hand a request to vLLM."""
        if request.is_abandoned():
            yield Done(request.id, "abandoned")
            return
        try:
            self._require_possible(request)
            row = Row(
                request,
                request.prompt,
                TextStream(self._tokenizer, request.sampling.stop),
                time.perf_counter(),
            )
            self._submit(row)
        except Exception as error:  # one request's failure is its own
            yield failed(request, error)

    def _require_possible(self, request: Request) -> None:
        if request.id in self._rows:
            raise DataError(f"request id {request.id!r} is in use: give each its own")
        if request.monitor is not None or request.checkpoints:
            raise CapabilityError("this engine watches no replies and stores no checkpoints")
        for read in request.reads:
            if not isinstance(read, Texts) and read not in self._columns.specs:
                raise CapabilityError(
                    f"the engine computes no read-out of {read}: name its detector when the engine "
                    "is loaded"
                )

    def _submit(self, row: Row) -> None:
        request, prompt = row.request, row.prompt
        turns = [(span.start, span.stop) for span in prompt.spans_of("user")]
        # Tokens that the prefix cache holds are not computed, and so would not be summed. The last
        # one always is: it stands in for what nobody asks for.
        wanted = frozenset() if row.is_judged else frozenset(request.reads)
        spans = [
            spans_of(of.spec if of.spec in wanted else LAST, len(prompt), turns)
            for of in self._columns.columns
        ]
        first, is_bypassed = needed_from(spans, len(prompt), block_size=self._block_size)
        self.num_cache_bypassed += is_bypassed
        params = sampling_params(
            request,
            room=self.max_tokens - len(prompt),
            end_token_ids=self._known.end_token_ids,
        )
        params.skip_reading_prefix_cache = is_bypassed
        said = {"id": request.id, "number": row.number, "spans": spans, NEEDED_FROM: first}
        if row.steered is not None:
            said[STEERED] = row.steered
        params.extra_args = {CONFIG_KEY: said}
        row.key = self._engine.add_request(
            request.id,
            {"prompt_token_ids": list(prompt.token_ids)},
            params,
            lora_request=row.adapter,
        )
        self._rows[request.id] = row

    def _judge(self, extra: dict[str, Any], found: Array | Exception) -> Forced | None:
        """Let a request's own function decide, before its first token is handed on.

        Returns:
            None if vLLM's reply stands; an empty one where something else comes of it.
        """
        row = self._rows.get(extra.get("id", ""))
        if row is None or row.number != extra["number"]:  # over; its id may have come again
            return ()
        if row.is_judged:  # read again
            return None
        row.is_judged = True
        request, started = row.request, time.perf_counter()
        try:
            row.intervention = request.decide(self._readings(request, found))
        except Exception as error:  # one request's failure is its own
            row.told = [failed(request, error)]
            return ()
        guard_s = time.perf_counter() - started
        row.told = [Scored(request.id, started - row.started_at, guard_s)]
        if request.sampling.max_tokens == 0:
            row.told.append(Done(request.id, "scored"))
        elif row.intervention is not None:
            row.told.append(Switched(request.id, row.intervention))
        return () if len(row.told) > 1 else None

    def _readings(self, request: Request, found: Array | Exception) -> Readings:
        """Return what a request reads.

        Raises:
            DataError: It was not scored.
        """
        values: dict[Read, Any] = {}
        for read in request.reads:
            if isinstance(read, CaptureSpec):
                if isinstance(found, Exception):
                    raise found
                values[read] = self._columns.state(read, found)[None]
            else:
                values[read] = (request.prompt.chat.last_user_text,)
        return Readings(values)

    def _step(self) -> Iterator[Event]:
        """Let vLLM take a step; what its judge and its draws say becomes events."""
        gone = [row for row in self._rows.values() if row.request.is_abandoned()]
        self._drop([row.request.id for row in gone])
        yield from [Done(row.request.id, "abandoned") for row in gone]
        if not self._rows:
            return
        try:
            outputs = self._engine.step()
        except Exception as error:  # the step is shared, and so is its failure
            ends = [failed(row.request, error) for row in self._rows.values()]
            self._drop(list(self._rows))
            yield from ends
            return
        events: list[Event] = []
        for output in outputs:
            row = self._rows.get(output.request_id)
            if row is not None and isinstance(output, RequestOutput):
                events += self._after(row, output)
        yield from events

    def _after(self, row: Row, output: RequestOutput) -> list[Event]:
        """Return what a step says of a request: its verdict first, then its tokens."""
        told, row.told = row.told, []
        if told and isinstance(told[-1], Done):
            self._drop([row.request.id])
            return told
        if told and row.intervention is not None:
            self._drop([row.request.id])
            return [*told, *self._intervened(row, row.intervention)]
        if not row.is_judged:
            self._drop([row.request.id])
            return [failed(row.request, DataError("vLLM drew a token that nobody had judged"))]
        drawn = row.take(output, self._known.end_token_ids, max_tokens=self.max_tokens)
        if drawn and isinstance(drawn[-1], Done):
            self._drop([row.request.id])
        return [*told, *drawn]

    def _intervened(self, row: Row, intervention: Intervention) -> list[Event]:
        request = row.request
        if isinstance(intervention, EndReply):
            return [Done(request.id, "ended")]
        if isinstance(intervention, ReplyWith):
            first = len(request.prompt)
            return [*text_events(self._tokenizer, request.id, intervention.text, first=first)]
        try:
            self._in_place.change(row, intervention, render=self.render)
            self._submit(row)
        except Exception as error:  # one request's failure is its own
            return [failed(request, error)]
        return []

    def _drop(self, ids: list[str]) -> None:
        """Forget requests; vLLM does, too, if they are still under way."""
        rows = [self._rows.pop(request_id) for request_id in ids]
        if rows:
            self._engine.abort_request([row.key for row in rows], internal=True)
