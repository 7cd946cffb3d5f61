"""Follows prompts through the steps of a worker, and has them judged once they are read whole.

Everything is kept by request, never by slot: a request that is preempted and comes back in another
slot stays what it was. What taps leave of a step is copied behind its pass, and looked at when the
step's tokens are, so that on a GPU the next step may be under way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.engines._columns import PrefillScores, Spans
from demur.engines.vllm.steering import STEERED, Steering, change_of
from demur.engines.vllm.taps import Kept, Taps

CONFIG_KEY = "demur"
"""In vLLM's `additional_config`: the hash of the columns, which so salts the compile cache, too.
In a request's `extra_args`: what it says for demur."""

Forced = tuple[int, ...]
"""Tokens that take a reply's place; the end of the reply follows."""
Judge = Callable[[dict[str, Any], Array | Exception], Forced | None]
"""Takes what `extra_args` hold for demur, and the columns or why there are none."""


@dataclass
class _Followed:
    """What a worker knows of a request."""

    num_prompt: int
    """Tokens of its prompt."""
    extra: dict[str, Any]
    """What it says for demur."""
    scores: PrefillScores | None
    """None once it was judged."""
    forced: Forced | None = None


@dataclass(frozen=True)
class _Part:
    """The tokens of a request in a step."""

    request_id: str
    index: int
    """Of the request in the batch."""
    start: int
    """Of the first token in the request."""
    rows: slice
    """Of the tokens in the step."""
    followed: _Followed


@dataclass(frozen=True)
class Taken:
    """What a step has read of prompts."""

    parts: Sequence[_Part]
    """Those of prompts that are not judged yet."""
    kept: Kept


class Reader:
    """Follows the prompts of one worker through its steps.

    Args:
        runner: vLLM's model runner, the older or the newer one.
        taps: In its model.
        steering: Likewise, if there are vectors to add.
    """

    def __init__(self, runner: Any, taps: Taps, steering: Steering | None = None) -> None:
        self._runner = runner
        self._taps = taps
        self.steering = steering
        self._followed: dict[str, _Followed] = {}
        self._settled: set[str] = set()
        """Requests that pass and are not steered: there is nothing left to do for them."""
        self._parts: list[_Part] | None = None
        """Of the step at hand, once it is known in which order vLLM takes its requests."""
        self._scheduled: dict[str, int] = {}
        """Tokens of each request in the step at hand."""
        self.judge: Judge = _nobody
        self.opens: Callable[[Any], dict[str, Any]] = said
        """Takes a request as vLLM schedules it; returns what it says for demur."""
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
        for request in scheduled.scheduled_new_reqs:
            if request.req_id not in self._followed:  # one that was preempted comes as a new one
                self._followed[request.req_id] = self._follow(request)
        self._scheduled, self._parts = scheduled.num_scheduled_tokens, None
        self._taps.begin(is_read=not self._settled.issuperset(self._scheduled))

    def choose(self, *_: object) -> None:
        """Name the tokens to read and to steer, as a hook before the model's forward pass."""
        self._parts = self._parts_of_step()
        if self.steering is not None:
            changes = [change_of(of.followed.extra, of.start, of.rows) for of in self._parts]
            self.steering.choose([change for change in changes if change is not None])
        wanted = [
            part.rows.start + scores.wanted(part.start, part.rows.stop - part.rows.start)
            for part in self._parts
            if (scores := part.followed.scores) is not None
        ]
        if wanted:
            self._taps.choose(np.concatenate(wanted))

    def take(self) -> Taken | None:
        """Keep what the step's pass has read of prompts; None if it has read none."""
        if self._parts is None:
            self._parts = self._parts_of_step()
        read = [
            part
            for part in self._parts
            if part.start < part.followed.num_prompt and part.followed.scores is not None
        ]
        if not read:
            return None
        rows = slice(min(of.rows.start for of in read), max(of.rows.stop for of in read))
        return Taken(read, self._taps.keep(rows))

    def settle(self, taken: Taken) -> None:
        """Add what a step has read, and judge the prompts that are read whole."""
        for part in taken.parts:
            followed = part.followed
            if followed.scores is None:
                continue
            self._read(followed, part.start, taken.kept.values(part.rows))
            is_passed = followed.scores is None and followed.forced is None
            if is_passed and STEERED not in followed.extra and part.request_id in self._followed:
                self._settled.add(part.request_id)

    def forced(self, *, end_token_id: int) -> dict[int, int]:
        """Return the tokens that the step at hand is to draw, by row of the batch.

        Args:
            end_token_id: Follows a forced reply.
        """
        found = {}
        for part in self._parts or ():
            ids = part.followed.forced
            num_tokens = part.start + part.rows.stop - part.rows.start
            num_drawn = num_tokens - part.followed.num_prompt
            if ids is not None and num_drawn >= 0:
                found[part.index] = ids[num_drawn] if num_drawn < len(ids) else end_token_id
        return found

    def _parts_of_step(self) -> list[_Part]:
        """Return the requests of the step that are to be read or forced."""
        if self._settled.issuperset(self._scheduled):
            return []
        row, found = 0, []
        for index, (request_id, start) in enumerate(_places(self._runner)):
            count = self._scheduled.get(request_id, 0)
            if request_id not in self._settled:
                rows = slice(row, row + count)
                found.append(_Part(request_id, index, start, rows, self._followed[request_id]))
            row += count
        return found

    def _follow(self, request: Any) -> _Followed:
        extra, length = self.opens(request), len(request.prompt_token_ids)
        spans: Spans = extra.get("spans") or self._taps.columns.default_spans(length)
        return _Followed(length, extra, PrefillScores(length, spans))

    def _read(self, followed: _Followed, start: int, values: Array) -> None:
        """Add the values of a step to a prompt's columns, and judge it if they were the last."""
        scores = followed.scores
        assert scores is not None, "a prompt is judged once"
        if not scores.add(start, values):
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


def reader_of(engine: Any) -> Reader:
    """Return the reader of the worker of vLLM's `LLMEngine`, in this process."""
    found: Reader = engine.model_executor.driver_worker.worker.reader
    return found


def _places(runner: Any) -> Iterator[tuple[str, int]]:
    """Yield the requests of the step at hand in the order of the batch, and where each begins."""
    if is_older(runner):
        ids, starts = runner.input_batch.req_ids, runner.input_batch.num_computed_tokens_cpu
    elif runner.execute_model_state is not None:
        batch = runner.execute_model_state.input_batch
        ids, starts = batch.req_ids, batch.num_computed_tokens_np
    else:
        return
    for index, request_id in enumerate(ids):
        yield request_id, int(starts[index])


def is_older(runner: Any) -> bool:
    """Tell vLLM's older model runner from the newer one."""
    return hasattr(runner, "input_batch")


def said(request: Any) -> dict[str, Any]:
    """Take a request at its word: it comes from this process."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    found: dict[str, Any] = extra.get(CONFIG_KEY) or {}
    return found


def _nobody(extra: dict[str, Any], found: Array | Exception) -> Forced:
    """Force an empty reply: a worker that no judge was given answers nobody."""
    return ()
