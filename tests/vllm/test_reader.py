"""How prompts are followed through the steps of a worker: vLLM's runners are made up here."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.engines._columns import Column, Columns
from tests.vllm_engines import needs_vllm

pytestmark = needs_vllm
LAST, ALL = CaptureSpec((0,)), CaptureSpec((0,), positions="all", pool="mean")
D_MODEL = 4


class Block(nn.Module):
    """Returns the two parts of a state, as blocks of vLLM do."""

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state / 2, state / 2


class Step:
    """Feeds made-up steps to a reader.

    Args:
        is_older: Of the two runners.
    """

    def __init__(self, *, is_older: bool) -> None:
        of_reader = pytest.importorskip("demur.engines.vllm.reader")
        of_taps = pytest.importorskip("demur.engines.vllm.taps")
        weights = np.arange(1, 1 + D_MODEL, dtype=np.float32)[None]
        self.columns = Columns((Column(LAST, weights), Column(ALL, weights)), 1)
        self.model = nn.Module()
        self.block = Block()
        self.model.layers = nn.ModuleList([self.block])
        taps = of_taps.Taps(self.model, self.columns, max_tokens=64, device=torch.device("cpu"))
        self.is_older = is_older
        self.runner = SimpleNamespace(input_batch=None) if is_older else SimpleNamespace()
        self.reader = of_reader.Reader(self.runner, taps)
        self.judged: dict[str, Array] = {}
        self.reader.judge = self._judge
        self.states: dict[str, torch.Tensor] = {}
        self.read: dict[str, int] = {}

    def _judge(self, extra: dict[str, Any], found: Any) -> None:
        assert extra["id"] not in self.judged, "judged twice"
        self.judged[extra["id"]] = found

    def take(self, counts: dict[str, int], *, finished: set[str] | None = None) -> Any:
        """Let the model read so many tokens of each request; return what the reader took."""
        new = [request_id for request_id in counts if request_id not in self.read]
        for request_id in new:
            self.states.setdefault(request_id, torch.randn(40, D_MODEL))
            self.read[request_id] = 0
        said = {name: SimpleNamespace(extra_args={"demur": {"id": name}}) for name in new}
        scheduled = SimpleNamespace(
            finished_req_ids=finished or set(),
            num_scheduled_tokens=counts,
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name, prompt_token_ids=[0] * LENGTHS[name], sampling_params=said[name]
                )
                for name in new
            ],
        )
        self.reader.before(scheduled)
        ids = sorted(counts)  # another order than that of the scheduler
        starts = np.array([self.read[name] for name in ids])
        if self.is_older:
            batch = SimpleNamespace(req_ids=ids, num_computed_tokens_cpu=starts)
            self.runner.input_batch = batch
        else:
            batch = SimpleNamespace(req_ids=ids, num_computed_tokens_np=starts)
            self.runner.execute_model_state = SimpleNamespace(input_batch=batch)
        self.reader.choose()
        rows = [self.states[name][self.read[name] :][: counts[name]] for name in ids]
        self.block(torch.cat(rows))
        for name in ids:
            self.read[name] += counts[name]
        return self.reader.take()

    def expected(self, name: str) -> Array:
        """Return the columns of a prompt."""
        products = self.states[name][: LENGTHS[name]].double() @ torch.arange(1.0, 5.0).double()
        return np.array([products[-1], products.mean()])


LENGTHS = {"a": 5, "b": 9, "c": 3}


@pytest.mark.parametrize("is_older", [True, False])
def test_prompts_in_chunks_are_judged_by_their_own_tokens(is_older: bool) -> None:
    step = Step(is_older=is_older)
    for counts in ({"b": 4, "a": 5}, {"a": 1, "b": 5, "c": 2}, {"c": 1, "a": 1}, {"a": 1, "b": 1}):
        taken = step.take(counts)
        if taken is not None:
            step.reader.settle(taken)
    assert taken is None
    for name in LENGTHS:
        np.testing.assert_allclose(step.judged[name], step.expected(name), rtol=1e-5)
    assert step.reader.num_scored == 3


@pytest.mark.parametrize("is_older", [True, False])
def test_a_verdict_may_come_after_the_next_pass(is_older: bool) -> None:
    step = Step(is_older=is_older)
    waiting: list[Any] = []
    for counts in ({"a": 3, "b": 6}, {"a": 2, "b": 3, "c": 3}, {"a": 1, "b": 1, "c": 1}):
        waiting.append(step.take(counts))
        if len(waiting) > 1 and waiting[-2] is not None:
            step.reader.settle(waiting[-2])
    assert waiting[-1] is None, "a prompt that is read whole is not read again"
    for name in LENGTHS:
        np.testing.assert_allclose(step.judged[name], step.expected(name), rtol=1e-5)


def test_a_prompt_that_was_preempted_between_two_verdicts_is_read_from_its_start() -> None:
    step = Step(is_older=False)
    first = step.take({"b": 4})
    step.read["b"] = 0
    second = step.take({"b": 9})
    step.reader.settle(first)
    step.reader.settle(second)
    np.testing.assert_allclose(step.judged["b"], step.expected("b"), rtol=1e-5)


def test_a_request_that_is_over_before_its_verdict_leaves_nothing_behind() -> None:
    step = Step(is_older=False)
    taken = step.take({"a": 5})
    step.take({"b": 2}, finished={"a"})
    step.reader.settle(taken)
    assert set(step.judged) == {"a"}
    assert not step.reader._settled
    assert set(step.reader._followed) == {"b"}


def test_replies_are_forced_from_the_token_that_a_flagged_prompt_ends_with() -> None:
    step = Step(is_older=True)
    step.reader.judge = lambda extra, found: (7, 8) if extra["id"] == "a" else None
    drawn = []
    for counts in ({"a": 3, "c": 3}, {"a": 2, "c": 1}, {"a": 1, "c": 1}, {"a": 1, "c": 1}):
        taken = step.take(counts)
        if taken is not None:
            step.reader.settle(taken)
        drawn.append(step.reader.forced(end_token_id=2))
    assert drawn == [{}, {0: 7}, {0: 8}, {0: 2}]
