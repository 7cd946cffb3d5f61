"""Counts what vLLM computes: of each prompt its tokens, cache hits and chunks, and preemptions.

The numbers are those that its scheduler hands to the worker, step by step; vLLM itself is left as
it is.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PromptReads:
    """What was computed of one prompt."""

    num_tokens: int
    """Of the prompt."""
    num_cached: int
    """That the prefix cache held when it was first read."""
    num_computed: int = 0
    """Counted again where they were computed again."""
    num_chunks: int = 0
    """Steps that read a part of it."""

    def add(self, start: int, count: int) -> None:
        """Take note of a step; tokens of the reply are not counted.

        Args:
            start: The position of its first token.
            count: Of its tokens.
        """
        read = min(start + count, self.num_tokens) - start
        if read > 0:
            self.num_computed += read
            self.num_chunks += 1


@dataclass
class Steps:
    """What was scheduled."""

    num_steps: int = 0
    num_preempted: int = 0
    """How often a request had to give up its place in the cache."""
    prompts: dict[str, PromptReads] = field(default_factory=dict)
    """By vLLM's own ids of requests."""

    def take(self, scheduled: Any) -> None:
        """Take note of a step: a `SchedulerOutput` of vLLM."""
        self.num_steps += 1
        self.num_preempted += len(scheduled.preempted_req_ids or ())
        cached = scheduled.scheduled_cached_reqs
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in scheduled.scheduled_new_reqs:
            starts[new.req_id] = new.num_computed_tokens
            self.prompts[new.req_id] = PromptReads(new.prompt_len, new.num_computed_tokens)
        for request_id, count in scheduled.num_scheduled_tokens.items():
            if request_id in self.prompts:  # the others began before the counting did
                self.prompts[request_id].add(starts[request_id], count)

    def as_dict(self) -> dict[str, int]:
        """Return the sums."""
        return {
            "steps": self.num_steps,
            "preempted": self.num_preempted,
            "prompts": len(self.prompts),
            "prompt_tokens": _sum(of.num_tokens for of in self.prompts.values()),
            "computed_prompt_tokens": _sum(of.num_computed for of in self.prompts.values()),
            "prompts_with_prefix_hits": _sum(of.num_cached > 0 for of in self.prompts.values()),
            "prompts_in_chunks": _sum(of.num_chunks > 1 for of in self.prompts.values()),
        }


def _sum(values: Iterable[int]) -> int:
    return sum(map(int, values))


@contextmanager
def counting(engine: Any) -> Iterator[Steps]:
    """Count what an engine schedules inside the block.

    Args:
        engine: vLLM's `LLMEngine`, in this process.
    """
    scheduler = engine.engine_core.engine_core.scheduler
    plain, steps = scheduler.schedule, Steps()

    def schedule(*args: Any, **kwargs: Any) -> Any:
        scheduled = plain(*args, **kwargs)
        steps.take(scheduled)
        return scheduled

    scheduler.schedule = schedule
    try:
        yield steps
    finally:
        scheduler.schedule = plain
