"""The requests of `benchmarks.serving`, from the prompts that ship; no text of theirs is shown.

Which are flagged says the guard itself, beforehand. Ordinary prompts are those that it passes; of
these, those are kept whose reply alone is unlike the others' from its start, and whose tokens can
be told by their texts, so that each reply can be told from the others.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.serving_checks import MARGIN, ForcedReplies, Known
from demur.core.examples import Example
from demur.core.types import Chat, Sampling
from demur.datasets import dialogues, starter, written
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.exchange import plain_exchange, tokens_of

MOST_PROMPT_TOKENS = 256
NUM_TELLING = 8
"""First tokens in which every two replies differ."""
GREEDY = 0.0


@dataclass(frozen=True)
class Prompts:
    """What is asked, and what comes of it."""

    ordinary: tuple[Chat, ...]
    known: tuple[Known, ...]
    """The replies to the ordinary ones, alone."""
    flagged: tuple[Chat, ...]
    num_left_out: int
    """Prompts that passed, but whose replies cannot be told from others."""

    def bodies(self, model: str, *, counts: bool) -> list[bytes]:
        """Return the requests of the ordinary ones.

        Args:
            model: What the server calls it.
            counts: Ask for the number of tokens at the end of each stream.
        """
        return [
            body(chat, model, max_tokens=num_tokens_of(number), counts=counts)
            for number, chat in enumerate(self.ordinary)
        ]

    def flagged_bodies(self, model: str) -> list[bytes]:
        """Return the requests of the flagged ones."""
        return [body(chat, model, max_tokens=64, counts=True) for chat in self.flagged]


def num_tokens_of(number: int) -> int:
    """Return how long the reply to a prompt may be: 24 to 95 tokens, so that rows come and go."""
    return 24 + number * 37 % 72


def body(chat: Chat, model: str, *, max_tokens: int, counts: bool) -> bytes:
    """Return a request for a greedy stream."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in chat.messages],
        "max_tokens": max_tokens,
        "temperature": GREEDY,
        "stream": True,
    }
    if counts:
        request["stream_options"] = {"include_usage": True}
    return json.dumps(request).encode()


def malformed(model: str) -> list[tuple[bytes, int]]:
    """Return bodies that are wrong, each with the status that it must get."""
    turn = {"role": "user", "content": "Name three rivers."}
    right = {"model": model, "messages": [turn]}
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"model": model}, 400),
        ({**right, "messages": []}, 400),
        ({**right, "messages": [{**turn, "role": "nobody"}]}, 400),
        ({**right, "messages": [turn, {"role": "assistant", "content": "Rhine."}]}, 400),
        ({**right, "model": "another"}, 404),
        ({**right, "temperature": "hot"}, 400),
        ({**right, "max_tokens": 10**6}, 400),
        ({**right, "unknown_field": 1}, 400),
    ]
    bodies = [(json.dumps(request).encode(), status) for request, status in wrong]
    return [(b'{"model": ', 400), (b"[]", 400), (b"\xff", 400), *bodies]


def choose(
    engine: TransformersEngine, guard: Guard, *, num_ordinary: int, num_flagged: int, seed: int
) -> Prompts:
    """Choose prompts, and draw the replies that they get alone."""
    examples = [*starter.load(), *written.load(), *dialogues.load()]
    order = np.random.default_rng(seed).permutation(len(examples))
    shuffled = [examples[index] for index in order]
    judged = _judged(guard, shuffled, label="unsafe")
    flagged = islice((example.chat for example, is_flagged in judged if is_flagged), num_flagged)
    chosen = _Chosen(engine)
    for example, is_flagged in _judged(guard, shuffled, label="safe"):
        if not is_flagged:
            chosen.consider(example.chat)
        if len(chosen.chats) == num_ordinary:
            break
    return Prompts(
        ordinary=tuple(chosen.chats),
        known=tuple(chosen.known),
        flagged=tuple(flagged),
        num_left_out=chosen.num_left_out,
    )


def _judged(
    guard: Guard, examples: Sequence[Example], *, label: str
) -> Iterator[tuple[Example, bool]]:
    for example in examples:
        if example.label == label and _length(guard, example.chat) <= MOST_PROMPT_TOKENS:
            yield example, any(verdict.flagged for verdict in guard.check(example.chat))


def _length(guard: Guard, chat: Chat) -> int:
    return len(guard.engine.render(chat))


class _Chosen:
    """Ordinary prompts whose replies can be told apart."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.chats: list[Chat] = []
        self.known: list[Known] = []
        self.num_left_out = 0
        self._engine = engine
        self._starts: set[tuple[int, ...]] = set()
        self._forced = ForcedReplies(engine, self.known)

    def consider(self, chat: Chat) -> None:
        """Draw the reply to a chat alone; keep both if it can be told from the others."""
        sampling = Sampling(max_tokens=num_tokens_of(len(self.chats)))
        exchange = plain_exchange(self._engine, chat, sampling, request_id="0")
        pieces = tuple(token.text for token in tokens_of(self._engine, exchange))
        reply = exchange.reply()
        self.known.append(Known(self._engine.render(chat), pieces, reply.finish_reason))
        if self._can_be_told(reply.token_ids):
            self._starts.add(reply.token_ids[:NUM_TELLING])
            self.chats.append(chat)
        else:
            self.known.pop()
            self.num_left_out += 1

    def _can_be_told(self, token_ids: tuple[int, ...]) -> bool:
        """Tell the newest reply from the others, and its tokens by their texts."""
        known, start = self.known[-1], token_ids[:NUM_TELLING]
        is_ended = known.finish_reason == "stop"
        return (
            len(start) == NUM_TELLING
            and start not in self._starts
            and list(token_ids) in self._forced.tokens(known.pieces, is_ended)
            and self._forced(len(self.known) - 1, known.pieces, is_ended) < MARGIN
        )
