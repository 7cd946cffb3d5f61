"""A reply routed `pass` is the untouched model's, token for token, on real prompts."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from itertools import islice

import pytest
import torch

from demur.core.results import PASS, Reply
from demur.core.types import Chat, Sampling
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.exchange import plain_replies

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("DEMUR_DATA" not in os.environ, reason="DEMUR_DATA is not set"),
]

NUM_PROMPTS = 200
SAFE_SETS = ("alpaca_eval", "gsm8k_test", "mmlu_500", "truthfulqa", "xstest", "coconot_eval")
UNSAFE_SET = "jailbreakbench"
GREEDY = Sampling(max_tokens=16)
NEAR_TIE = 1e-4
"""A gap between the two largest logits under which rounding may choose."""


@cache
def safe_chats() -> tuple[Chat, ...]:
    """Return prompts of several sets by turns, more than are needed: some may be flagged."""
    data = DemurData()
    sets = [
        [e.chat for e in data.load(name, ("utility", "test_ood")) if e.label == "safe"]
        for name in SAFE_SETS
    ]
    return tuple(
        chat for chats in zip(*(chats[:70] for chats in sets), strict=True) for chat in chats
    )


def passed(guard: Guard, sampling: Sampling) -> list[tuple[Chat, Reply]]:
    """Answer safe prompts until enough of them were routed `pass`."""
    replies = ((chat, guard.reply(chat, sampling)) for chat in safe_chats())
    found = list(islice((pair for pair in replies if pair[1].route == PASS), NUM_PROMPTS))
    assert len(found) == NUM_PROMPTS
    return found


def plain(engine: TransformersEngine, chat: Chat, sampling: Sampling) -> tuple[int, ...]:
    (reply,) = plain_replies(engine, [chat], sampling)
    return reply.token_ids


def generated(engine: TransformersEngine, chat: Chat) -> tuple[int, ...]:
    ids = torch.tensor([engine.render(chat).token_ids])
    out = engine.loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
        pad_token_id=engine.loaded.tokenizer.eos_token_id,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def test_greedy_replies_equal_the_unguarded_ones_and_those_of_generate() -> None:
    engine = TransformersEngine.load("embedded")
    for chat, reply in passed(Guard.load(engine), GREEDY):
        assert reply.token_ids == plain(engine, chat, GREEDY)
        assert reply.token_ids == generated(engine, chat)


def test_sampled_replies_equal_the_unguarded_ones_of_the_same_seed() -> None:
    engine = TransformersEngine.load("embedded")
    sampling = Sampling(max_tokens=12, temperature=0.8, top_p=0.95, seed=11)
    for chat, reply in passed(Guard.load(engine), sampling):
        assert reply.token_ids == plain(engine, chat, sampling)


def top_two_gap(engine: TransformersEngine, chat: Chat, drawn: Sequence[int]) -> float:
    """Return the gap between the two largest logits after a prompt and some drawn tokens."""
    ids = torch.tensor([[*engine.render(chat).token_ids, *drawn]])
    with torch.inference_mode():
        first, second = engine.loaded.model(ids).logits[0, -1].topk(2).values.tolist()
    return float(first - second)


def test_flagged_neighbours_change_nothing_but_near_ties(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = TransformersEngine.load("embedded", dtype="float32", max_batch=8)
    guard = Guard.load(engine, responder="safety_prompt")
    unsafe = [e.chat for e in DemurData().load(UNSAFE_SET, ("test_ood",))]
    mixed = [
        chat
        for number, safe in enumerate(safe_chats())
        for chat in ((safe, unsafe[number // 3 % len(unsafe)]) if number % 3 == 0 else (safe,))
    ]
    num_compared, num_flagged, gaps = 0, 0, []
    for chat, reply in zip(mixed, guard.replies(mixed, GREEDY), strict=True):
        num_flagged += reply.route != PASS
        if reply.route != PASS or chat in unsafe:
            continue
        num_compared += 1
        alone = plain(engine, chat, GREEDY)
        if reply.token_ids != alone:
            pairs = zip(reply.token_ids, alone, strict=False)
            same = next(n for n, (ours, theirs) in enumerate(pairs) if ours != theirs)
            gaps.append(top_two_gap(engine, chat, alone[:same]))
        if num_compared == NUM_PROMPTS:
            break
    with capsys.disabled():
        sys.stdout.write(
            f"\n{num_compared} passed beside {num_flagged} flagged: {len(gaps)} near ties\n"
        )
    assert num_compared == NUM_PROMPTS
    assert num_flagged > NUM_PROMPTS / 8
    assert all(gap < NEAR_TIE for gap in gaps)
