"""The arms of the vLLM benchmarks: vLLM by itself, and guarded.

All run in this process, on the same model and with the same sizes. What is no arm's business is
left as vLLM has it; what it made of that stands in the results (`settings_of`).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol
from unittest.mock import patch

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from benchmarks.alternating import CLOCKS
from benchmarks.vllm_steps import counting
from benchmarks.vllm_windows import Answer, Asked, Window
from demur.core.protocols import Request
from demur.core.readout import LinearReadout
from demur.core.types import Prompt, Sampling
from demur.engines.vllm import VllmEngine
from demur.engines.vllm.rows import Known
from demur.guard import Guard
from demur.guard.exchange import Exchange
from demur.guard.loading import readouts_of
from demur.guard.responding import loads_of
from demur.modeling.load import locate

DETECTORS = ("pretrained",)


class Arm(Protocol):
    """Answers requests."""

    def reset(self) -> None:
        """Empty the prefix cache."""

    def ask(self, asked: Sequence[Asked], *, streams: int) -> Window:
        """Answer requests, with so many under way at a time."""

    def count(self, asked: Sequence[Asked], *, streams: int) -> tuple[Window, dict[str, int]]:
        """Do the same, and count what vLLM computes."""


class InProcess(ABC):
    """An arm whose engine runs in this process.

    Args:
        clock: One of CLOCKS.
    """

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]

    @property
    @abstractmethod
    def vllm(self) -> LLMEngine:
        """What runs the model."""

    @abstractmethod
    def ask(self, asked: Sequence[Asked], *, streams: int) -> Window:
        """Answer requests, with so many under way at a time."""

    def reset(self) -> None:
        """Empty the prefix cache."""
        self.vllm.reset_prefix_cache()

    def count(self, asked: Sequence[Asked], *, streams: int) -> tuple[Window, dict[str, int]]:
        """Answer requests, and count what vLLM computes."""
        with counting(self.vllm) as steps:
            window = self.ask(asked, streams=streams)
        return window, steps.as_dict()


def sizes(
    model: str, dtype: str, *, max_seqs: int, max_tokens: int, is_eager: bool, **more: Any
) -> dict[str, Any]:
    """Return what both engines are told.

    Args:
        model: As `--model` takes it.
        dtype: Of the weights; not `auto`.
        max_seqs: Most requests at a time.
        max_tokens: Of prompt and reply.
        is_eager: Compile nothing.
        more: Fields of vLLM's `EngineArgs`.
    """
    return {
        "model": locate(model)[0],
        "dtype": dtype,
        "max_num_seqs": max_seqs,
        "max_model_len": max_tokens,
        "enforce_eager": is_eager,
        "disable_log_stats": True,
        **more,
    }


def gpu_share(*, engines: int) -> dict[str, Any]:
    """Return what vLLM is told where several engines share a GPU; nothing where there is none."""
    return {"gpu_memory_utilization": 0.9 / engines} if torch.cuda.is_available() else {}


def plain_engine(*, is_synchronous: bool = False, **options: Any) -> LLMEngine:
    """Return vLLM's own engine, in this process.

    Args:
        is_synchronous: Without asynchronous scheduling, and with the older model runner.
        options: Fields of its `EngineArgs`.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a process each would share two cores
    if not is_synchronous:
        return LLMEngine.from_engine_args(EngineArgs(**options))
    with patch.dict(os.environ, VLLM_USE_V2_MODEL_RUNNER="0"):
        return LLMEngine.from_engine_args(EngineArgs(**options, async_scheduling=False))


def guarded_engine(
    model: str,
    dtype: Any,
    options: dict[str, Any],
    *,
    readouts: Sequence[LinearReadout] | None = None,
    responder: str = "fixed_reply",
) -> VllmEngine:
    """Return the guarded one, for the packaged detector unless other read-outs are given.

    Args:
        model: As `--model` takes it.
        dtype: Of the weights.
        options: Of both engines.
        readouts: Of the detectors.
        responder: Of flagged prompts, as `--responder` takes it.
    """
    return VllmEngine.load(
        model,
        readouts=partial(readouts_of, DETECTORS) if readouts is None else readouts,
        interventions=partial(loads_of, responder),
        dtype=dtype,
        max_batch=options["max_num_seqs"],
        max_tokens=options["max_model_len"],
        is_eager=options["enforce_eager"],
        options=options,
    )


def settings_of(engine: LLMEngine) -> dict[str, Any]:
    """Return what vLLM made of its arguments."""
    config = engine.vllm_config
    return {
        "compilation": config.compilation_config.mode.name,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "newer_model_runner": config.use_v2_model_runner,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "block_size": config.cache_config.block_size,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
    }


class Plain(InProcess):
    """vLLM by itself: no taps, no readings, no judge.

    Args:
        vllm: The engine.
        known: The model's tokenizer and end tokens.
        clock: One of CLOCKS.
    """

    def __init__(self, vllm: LLMEngine, known: Known, *, clock: str = "wall") -> None:
        super().__init__(clock)
        self._vllm = vllm
        self._known = known
        self._end_token_ids = sorted(known.end_token_ids)

    @property
    def vllm(self) -> LLMEngine:
        """What runs the model."""
        return self._vllm

    def ask(self, asked: Sequence[Asked], *, streams: int) -> Window:
        """Answer requests."""
        answers: dict[str, Answer] = {}
        waiting, running, began_at = iter(asked), 0, self.now()
        while True:
            while running < streams and (one := next(waiting, None)) is not None:
                answers[one.id] = self._submit(one)
                running += 1
            if not running and self._is_done():
                return Window(answers, self.now() - began_at)
            for output in self._vllm.step():
                assert isinstance(output, RequestOutput)
                (completion,) = output.outputs
                answer = answers[output.request_id]
                answer.add(completion.token_ids, at=self.now())
                if output.finished:
                    self._finish(output, answer)
                    running -= 1

    def _submit(self, one: Asked) -> Answer:
        answer = Answer(self.now())
        ids = self.render(one)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=one.max_tokens,
            stop_token_ids=self._end_token_ids,
            output_kind=RequestOutputKind.DELTA,
        )
        self._vllm.add_request(one.id, {"prompt_token_ids": ids}, params)
        return answer

    def _finish(self, output: RequestOutput, answer: Answer) -> None:
        """Do what comes after a reply's last token."""

    def _is_done(self) -> bool:
        """Say whether nothing is left to do for replies that are complete."""
        return True

    def render(self, one: Asked) -> list[int]:
        """Return a prompt's tokens, as transformers renders chats."""
        tokenizer = self._known.tokenizer
        text = tokenizer.apply_chat_template(
            one.chat.as_messages(), tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class Guarded(InProcess):
    """The guarded engine.

    Args:
        engine: Of the guard.
        guard: Judges all prompts; its engine is not used.
        clock: One of CLOCKS.
    """

    def __init__(self, engine: VllmEngine, guard: Guard, *, clock: str = "wall") -> None:
        super().__init__(clock)
        self._engine = engine
        self._guard = guard

    @property
    def vllm(self) -> LLMEngine:
        """What runs the model."""
        return self._engine._engine

    def render(self, one: Asked) -> Prompt:
        """Return a prompt."""
        return self._engine.render(one.chat)

    def ask(self, asked: Sequence[Asked], *, streams: int) -> Window:
        """Answer requests."""
        answers: dict[str, Answer] = {}
        exchanges: dict[str, Exchange] = {}

        def requests() -> Iterator[Request]:
            for one in asked:
                sampling = Sampling(max_tokens=one.max_tokens)
                answers[one.id] = Answer(self.now())
                exchange = self._guard.open(
                    one.chat, sampling, request_id=one.id, wants_logprobs=False
                )
                exchanges[one.id] = exchange
                if exchange.request is not None:
                    yield exchange.request

        began_at = self.now()
        for event in self._engine.taking(streams).run(requests()):
            tokens = exchanges[event.id].take(event)
            if tokens:
                ids = [token.token_id for token in tokens]
                answers[event.id].add(ids, at=self.now())
        seconds = self.now() - began_at
        for request_id, exchange in exchanges.items():
            reply, answer = exchange.reply(), answers[request_id]
            answer.route, answer.error = reply.route, reply.error
            answer.is_scored = exchange.is_scored
            answer.score = reply.verdicts[0].score if reply.verdicts else None
        return Window(answers, seconds)
