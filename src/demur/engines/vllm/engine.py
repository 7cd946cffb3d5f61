"""The engine proper: hands requests to vLLM, and lets them be judged before their first token."""

import gc
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import EndReply, Intervention, PrependText, ReplyWith
from demur.core.protocols import Done, Event, Request, Scored, Switched, TokenOut
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Read, Texts
from demur.core.types import Chat, Dtype, ModelId, Prompt
from demur.engines._columns import Columns, spans_of
from demur.engines._monitoring import failed
from demur.engines._stored_columns import store
from demur.engines._text import TextStream
from demur.engines._waiting import Waiting
from demur.engines.vllm.worker import CONFIG_KEY, READOUTS, Forced, Reader
from demur.modeling.chat import ChatRenderer
from demur.modeling.gguf import cache_folder
from demur.modeling.load import load, locate

CAPABILITIES: frozenset[type] = frozenset({CaptureSpec, Texts, ReplyWith, EndReply, PrependText})
ReadoutsOf = Callable[[ModelId], Sequence[LinearReadout]]
WORKERS = "demur.engines.vllm.worker.Guarded{}Worker"
FORCED_REPLY = "demur.engines.vllm.worker:ForcedReply"


@dataclass(eq=False)
class _Row:
    """A request on its way through vLLM."""

    request: Request
    prompt: Prompt
    text: TextStream
    started_at: float
    key: str = ""
    """vLLM's own id of it."""
    told: list[Event] = field(default_factory=list)
    """What the judge has to say, once the step is over."""
    intervention: Intervention | None = None
    is_judged: bool = False
    num_drawn: int = 0


class VllmEngine:
    """Runs a chat model in vLLM.

    Args:
        engine: vLLM's, in this process, with one of the guarded workers.
        columns: What its model computes.
        renderer: Of the model's template.
        tokenizer: Of the model.
        model_id: Of the model.
        end_token_ids: What ends a reply.
        max_batch: Most requests that vLLM is given at a time.
    """

    def __init__(
        self,
        engine: LLMEngine,
        *,
        columns: Columns,
        renderer: ChatRenderer,
        tokenizer: Any,
        model_id: ModelId,
        end_token_ids: frozenset[int],
        max_batch: int,
    ) -> None:
        self._engine = engine
        self._columns = columns
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._model_id = model_id
        self._end_ids = end_token_ids
        self._max_batch = max_batch
        self._rows: dict[str, _Row] = {}
        self.num_cache_bypassed = 0
        """Requests that did not read the prefix cache, since a mean over their tokens was asked
        for."""
        reader: Reader = engine.model_executor.driver_worker.worker.reader
        reader.judge = self._judge

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded",
        *,
        readouts: Sequence[LinearReadout] | ReadoutsOf = (),
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
            dtype: `auto` is what the transformers engine would take.
            max_batch: Most requests at a time.
            max_tokens: The context; None is the model's own.
            is_eager: Compile nothing.
            options: More fields of vLLM's `EngineArgs`.

        Raises:
            CapabilityError: A read-out cannot be computed inside the model, or an option is one
                that demur does not guard.
            ConfigError: There is no such model, or it has no chat template.
        """
        loaded = load(source, dtype=dtype, device="cpu")
        model_id, tokenizer, end_ids = loaded.model_id, loaded.tokenizer, loaded.end_token_ids
        renderer, num_blocks = ChatRenderer.of(loaded), len(loaded.parts.blocks)
        longest = min(max_tokens or loaded.max_tokens, loaded.max_tokens)
        del loaded
        gc.collect()
        found = readouts(model_id) if callable(readouts) else readouts
        columns = Columns.of(found, num_blocks=num_blocks)
        sha256 = store(columns, cache_folder() / READOUTS)
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the only one that is guarded
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the judge is called from the step
        kind = "Gpu" if torch.cuda.is_available() else "Cpu"
        args = EngineArgs(
            **{
                "model": locate(source)[0],
                "dtype": model_id.dtype,
                "max_model_len": longest,
                "max_num_seqs": max_batch,
                "enforce_eager": is_eager,
                "disable_log_stats": True,
                **(options or {}),
                "async_scheduling": False,
                "worker_cls": WORKERS.format(kind),
                "logits_processors": [FORCED_REPLY],
                "additional_config": {CONFIG_KEY: sha256},
            }
        )
        return cls(
            LLMEngine.from_engine_args(args),
            columns=columns,
            renderer=renderer,
            tokenizer=tokenizer,
            model_id=model_id,
            end_token_ids=end_ids,
            max_batch=max_batch,
        )

    @property
    def vllm_engine(self) -> LLMEngine:
        """What runs the model."""
        return self._engine

    @property
    def model_id(self) -> ModelId:
        """What detectors are matched against."""
        return self._model_id

    @property
    def capabilities(self) -> frozenset[type]:
        """The reads and interventions that this engine can do.

        Of captures those alone that one of its read-outs has: see `engines._columns`.
        """
        return CAPABILITIES

    @property
    def max_tokens(self) -> int:
        """The model's context: prompt and reply together."""
        return int(self._engine.model_config.max_model_len)

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model will read it.

        Raises:
            DataError: The chat ends in an assistant turn, has no user text, or fills the context.
        """
        prompt = self._renderer.render(chat)
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
        longer = self._renderer.with_reply(prompt, reply)
        if len(longer) >= self.max_tokens:
            raise DataError(
                f"prompt and reply have {len(longer)} tokens: the engine takes at most "
                f"{self.max_tokens - 1}; shorten them"
            )
        return longer

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; see `core.protocols.Engine.run`."""
        waiting = Waiting(requests)
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
            row = _Row(
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

    def _submit(self, row: _Row) -> None:
        request, prompt = row.request, row.prompt
        spans = [spans_of(column.spec, prompt) for column in self._columns.columns]
        # Tokens that the prefix cache holds are not computed, and so would not be summed.
        is_pooled = not row.is_judged and any(
            isinstance(read, CaptureSpec) and read.pool != "none" for read in request.reads
        )
        self.num_cache_bypassed += is_pooled
        params = self._params(request, room=self.max_tokens - len(prompt))
        params.skip_reading_prefix_cache = is_pooled
        params.extra_args = {CONFIG_KEY: {"id": request.id, "spans": spans}}
        row.key = self._engine.add_request(
            request.id, {"prompt_token_ids": list(prompt.token_ids)}, params
        )
        self._rows[request.id] = row

    def _params(self, request: Request, *, room: int) -> SamplingParams:
        sampling = request.sampling
        digest = hashlib.sha256(f"{sampling.seed}:{request.draw_id or request.id}".encode())
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=int.from_bytes(digest.digest()[:7], "big"),
            max_tokens=min(max(1, sampling.max_tokens), room),
            stop_token_ids=sorted(self._end_ids),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _judge(self, extra: dict[str, Any], found: Array | Exception) -> Forced | None:
        """Let a request's own function decide, between its prefill and its first token.

        Returns:
            None lets vLLM draw; an empty reply is forced where something else comes of it.
        """
        row = self._rows.get(extra.get("id", ""))
        if row is None:
            return ()
        if row.is_judged:  # read again, with a safety prompt
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
            rows = list(self._rows.values())
            self._rows.clear()
            yield from [failed(row.request, error) for row in rows]
            raise
        events: list[Event] = []
        for output in outputs:
            row = self._rows.get(output.request_id)
            if row is not None and isinstance(output, RequestOutput):
                events += self._after(row, output)
        yield from events

    def _after(self, row: _Row, output: RequestOutput) -> list[Event]:
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
        return [*told, *self._drawn(row, output)]

    def _intervened(self, row: _Row, intervention: Intervention) -> list[Event]:
        request = row.request
        if isinstance(intervention, EndReply):
            return [Done(request.id, "ended")]
        if isinstance(intervention, ReplyWith):
            return self._replaced(request, intervention)
        try:
            assert isinstance(intervention, PrependText), "the guard checked the capabilities"
            row.prompt = self._under(request.prompt, intervention.text)
            row.intervention = None
            self._submit(row)
        except Exception as error:  # one request's failure is its own
            return [failed(request, error)]
        return []

    def _under(self, prompt: Prompt, text: str) -> Prompt:
        try:
            return self.render(prompt.chat.with_safety_prompt(text))
        except DataError as error:
            raise DataError(f"with its safety prompt {error}") from error

    def _replaced(self, request: Request, intervention: ReplyWith) -> list[Event]:
        ids = self._tokenizer(intervention.text, add_special_tokens=False)["input_ids"]
        text, first = TextStream(self._tokenizer), len(request.prompt)
        return [
            *(
                TokenOut(
                    request.id,
                    first + n,
                    token_id,
                    text.push(token_id, is_last=n == len(ids) - 1),
                    0.0,
                )
                for n, token_id in enumerate(ids)
            ),
            Done(request.id, "replaced"),
        ]

    def _drawn(self, row: _Row, output: RequestOutput) -> list[Event]:
        """Return the tokens that a step drew for a request, and its end."""
        request, (completion,) = row.request, output.outputs
        events: list[Event] = []
        for token_id, logprobs in zip(completion.token_ids, completion.logprobs or (), strict=True):
            position = len(row.prompt) + row.num_drawn
            row.num_drawn += 1
            is_end = token_id in self._end_ids
            is_last = is_end or row.num_drawn == request.sampling.max_tokens
            is_last = is_last or position + 1 >= self.max_tokens
            shown = row.text.push(token_id, is_last=is_last)
            events.append(
                TokenOut(request.id, position, token_id, shown, logprobs[token_id].logprob)
            )
            if is_last or row.text.is_stopped:
                self._drop([request.id])
                is_stop = is_end or row.text.is_stopped
                return [*events, Done(request.id, "stop" if is_stop else "length")]
        if output.finished:
            self._drop([request.id])
            reason = completion.finish_reason
            events.append(failed(request, DataError(f"vLLM ended the reply: {reason}")))
        return events

    def _drop(self, ids: list[str]) -> None:
        """Forget requests; vLLM does, too, if they are still under way."""
        rows = [self._rows.pop(request_id) for request_id in ids]
        if rows:
            self._engine.abort_request([row.key for row in rows], internal=True)
