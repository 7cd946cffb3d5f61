"""The worker: vLLM's own, with tapped blocks and a judge before each first token.

`execute_model` runs the pass and computes logits; `sample_tokens` draws. In between the columns of
the prompts that were just read whole are handed to a judge. It may answer with tokens, which a
logits processor then forces, whatever the request's sampling options are. Everything is kept by
request, never by slot: a request that is preempted and comes back in another slot stays flagged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from demur.core.errors import CapabilityError, DataError
from demur.core.readings import Array
from demur.engines._columns import PrefillScores, Spans
from demur.engines._stored_columns import stored
from demur.engines.vllm.taps import Taps
from demur.modeling.gguf import cache_folder

CONFIG_KEY = "demur"
"""In vLLM's `additional_config`: the hash of the columns, which so salts the compile cache, too."""
READOUTS = "readouts"
"""The folder of the cache that holds them."""

Forced = tuple[int, ...]
"""Tokens that take a reply's place; the end of the reply follows."""
Judge = Callable[[dict[str, Any], Array | Exception], Forced | None]
"""Takes what `extra_args` hold for demur, and the columns or why there are none."""


class ForcedReply(LogitsProcessor):
    """Leaves one token to draw from in the rows that the worker names, in the step at hand."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, int] = {}
        """Row of the logits to token."""

    def is_argmax_invariant(self) -> bool:
        """Say that greedy replies change, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Ignore slots: the worker names rows anew in each step."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Force the named rows of [row, vocabulary]."""
        for row, token_id in self.rows.items():
            logits[row] = -torch.inf
            logits[row, token_id] = 0.0
        return logits


@dataclass
class _Followed:
    """What a worker knows of a request."""

    extra: dict[str, Any]
    """What it says for demur."""
    scores: PrefillScores | None
    """None once it was judged."""
    forced: Forced | None = None


@dataclass(frozen=True)
class _Part:
    """The tokens of a request in a step."""

    index: int
    """Of the request in the batch."""
    start: int
    """Of the first token in the request."""
    rows: slice
    """Of the tokens in the step."""
    num_prompt: int
    """Tokens of its prompt."""
    followed: _Followed


class Reader:
    """Follows the prompts of one worker through its steps.

    Args:
        runner: vLLM's model runner, the older one.
        taps: In its model.
        end_token_id: Ends a forced reply.
    """

    def __init__(self, runner: Any, taps: Taps, *, end_token_id: int) -> None:
        self._runner = runner
        self._taps = taps
        self._end_token_id = end_token_id
        self._followed: dict[str, _Followed] = {}
        self._settled: set[str] = set()
        """Requests that pass: there is nothing left to do for them."""
        self._parts: list[_Part] | None = None
        """Of the step at hand, once it is known in which order vLLM takes its requests."""
        self._scheduled: dict[str, int] = {}
        """Tokens of each request in the step at hand."""
        self.judge: Judge = _nobody
        self.opens: Callable[[Any], dict[str, Any]] = _said
        """Takes vLLM's state of a request; returns what it says for demur."""
        self.num_scored = 0
        """Prompts that got their columns."""

    def before(self, scheduled: Any) -> None:
        """Forget the last step, and requests that are over: their ids may come again.

        Args:
            scheduled: vLLM's `SchedulerOutput` of the coming step.
        """
        for request_id in scheduled.finished_req_ids:
            self._followed.pop(request_id, None)
            self._settled.discard(request_id)
        self._scheduled, self._parts = scheduled.num_scheduled_tokens, None
        self._taps.begin(is_read=not self._settled.issuperset(self._scheduled))

    def choose(self, *_: object) -> None:
        """Tell the taps which tokens to read, as a hook before the model's forward pass."""
        self._parts = self._parts_of_step()
        wanted = [
            part.rows.start + scores.wanted(part.start, part.rows.stop - part.rows.start)
            for part in self._parts
            if (scores := part.followed.scores) is not None
        ]
        if wanted:
            self._taps.choose(np.concatenate(wanted))

    def after(self) -> None:
        """Judge the prompts that a step has read whole, and name the rows to force."""
        batch, forced = self._runner.input_batch, {}
        for part in self._parts_of_step() if self._parts is None else self._parts:
            followed = part.followed
            if followed.scores is not None:
                self._read(followed, part.start, part.rows)
            num_drawn = part.start + part.rows.stop - part.rows.start - part.num_prompt
            if followed.forced is not None and num_drawn >= 0:
                ids = followed.forced
                forced[part.index] = ids[num_drawn] if num_drawn < len(ids) else self._end_token_id
            elif followed.scores is None and followed.forced is None:
                self._settled.add(batch.req_ids[part.index])
        for processor in batch.logitsprocs.non_argmax_invariant:
            if isinstance(processor, ForcedReply):
                processor.rows = forced
                if forced:
                    self._hide(forced, processor)

    @torch.inference_mode()
    def _hide(self, forced: dict[int, int], processor: ForcedReply) -> None:
        """Take out of the logits what log-probabilities would tell of the untouched reply.

        The processor forces once more, after those that could forbid an end.
        """
        step = self._runner.execute_model_state
        if step is not None and step.logits is not None:
            processor.apply(step.logits)

    def _parts_of_step(self) -> list[_Part]:
        """Return the requests of the step that are to be read or forced."""
        if self._settled.issuperset(self._scheduled):
            return []
        batch, row, found = self._runner.input_batch, 0, []
        for index, request_id in enumerate(batch.req_ids):
            count = self._scheduled.get(request_id, 0)
            if request_id not in self._settled:
                start = int(batch.num_computed_tokens_cpu[index])
                length = int(batch.num_prompt_tokens[index])
                followed = self._follow(request_id, length)
                found.append(_Part(index, start, slice(row, row + count), length, followed))
            row += count
        return found

    def _follow(self, request_id: str, length: int) -> _Followed:
        if request_id not in self._followed:
            extra = self.opens(self._runner.requests[request_id])
            spans: Spans = extra.get("spans") or self._taps.columns.default_spans(length)
            self._followed[request_id] = _Followed(extra, PrefillScores(length, spans))
        return self._followed[request_id]

    def _read(self, followed: _Followed, start: int, rows: slice) -> None:
        """Add the rows of a step to a prompt's columns, and judge it if they were the last."""
        scores = followed.scores
        assert scores is not None, "a prompt is judged once"
        if not scores.add(start, self._taps.values(rows)):
            return
        followed.scores = None
        found: Array | Exception
        try:
            found = scores.values()
            if not np.isfinite(found).all():
                raise DataError("a tap did not run, or a state is not finite: nothing was scored")
            self.num_scored += 1
        except DataError as error:
            found = error
        followed.forced = self.judge(followed.extra, found)


def _said(request: Any) -> dict[str, Any]:
    """Take a request at its word: it comes from this process."""
    found: dict[str, Any] = (request.sampling_params.extra_args or {}).get(CONFIG_KEY) or {}
    return found


def _nobody(extra: dict[str, Any], found: Array | Exception) -> Forced:
    """Force an empty reply: a worker that no judge was given answers nobody."""
    return ()


class Guarding:
    """Adds taps and a reader to a worker of vLLM."""

    vllm_config: VllmConfig
    device: torch.device
    model_runner: Any
    reader: Reader

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and tap its blocks before anything is compiled.

        Raises:
            CapabilityError: vLLM was started with something that demur does not guard.
        """
        config = self.vllm_config
        _require_guardable(config, self.model_runner)
        super().load_model(**kwargs)  # type: ignore[misc]
        columns = stored(config.additional_config[CONFIG_KEY], cache_folder() / READOUTS)
        taps = Taps(
            self.model_runner.get_model(),
            columns,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            device=self.device,
        )
        end = config.model_config.try_get_generation_config().get("eos_token_id")
        if end is None:
            end = config.model_config.hf_text_config.eos_token_id
        self.reader = Reader(
            self.model_runner, taps, end_token_id=end[0] if isinstance(end, list) else end
        )
        if taps.can_choose:
            self.model_runner.get_model().register_forward_pre_hook(self.reader.choose)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step; between its pass and its draws the prompts that it read are judged."""
        self.reader.before(scheduler_output)
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        self.reader.after()
        return output


class GuardedCpuWorker(Guarding, CPUWorker):
    """vLLM's worker on a CPU, guarded."""


class GuardedGpuWorker(Guarding, Worker):
    """vLLM's worker on a GPU, guarded."""


def _require_guardable(config: VllmConfig, runner: Any) -> None:
    refused = {
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        "the newer model runner (set VLLM_USE_V2_MODEL_RUNNER=0)": not hasattr(
            runner, "input_batch"
        ),
    }
    found = [name for name, is_on in refused.items() if is_on]
    if found:
        raise CapabilityError(f"demur does not guard {' or '.join(found)}: switch it off")
