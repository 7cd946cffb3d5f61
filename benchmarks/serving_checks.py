"""Whether a reply is its own prompt's: what `benchmarks.serving` holds each complete reply against.

Replies are greedy, and the reply to each prompt alone (a batch of one) is known beforehand. In a
batch bfloat16 rounds otherwise, so that of two nearly equal tokens the other may be drawn, and the
rest differs. So a reply is right if it is the known one, letter for letter, or else if under its
own prompt each of its tokens is nearly greedy: its logit is less than `MARGIN` below the largest
one. How often the second rule alone catches a mix-up is measured beside, see `mix_ups`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from demur.core.types import Dtype, Prompt
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import load

MAX_READINGS = 32
"""Of one reply whose characters can be cut into tokens in several ways."""
INCOMPLETE = "\ufffd"
"""What stands for a character that never came whole."""
MARGIN = 1.0
"""Logits. Between 16 and 32 bfloat16 numbers lie 0.125 apart."""
MOST_READ = 100
"""Of replies that are read once more."""

COUNTED = ("a token lost", "one twice")
"""Mix-ups that a count of the tokens finds."""

Judge = Callable[[int, tuple[str, ...], bool], float]
"""Says of a prompt's number, the texts of a reply's tokens and whether it ended by itself how far
its least greedy token lies below the largest logit."""


@dataclass(frozen=True)
class Known:
    """A prompt with the reply that it gets alone."""

    prompt: Prompt
    pieces: tuple[str, ...]
    """The reply's text, token by token; the one that ends it has none."""
    finish_reason: str


@dataclass
class ReplyCheck:
    """Holds replies against their prompts.

    Args:
        known: The prompts with their replies.
        judge: See `Judge`.
    """

    known: Sequence[Known]
    judge: Judge
    num_identical: int = 0
    num_near: int = 0
    """Not the known one, but nearly greedy."""
    wrong: list[str] = field(default_factory=list)
    """What is wrong with the others."""
    largest_gap: float = 0.0
    """Of those that are nearly greedy, in logits."""
    _gaps: dict[tuple[int, tuple[str, ...], bool], float] = field(default_factory=dict)

    def take(self, number: int, pieces: tuple[str, ...], *, finish_reason: str | None) -> None:
        """Take note of a complete reply to a prompt."""
        known = self.known[number]
        if (pieces, finish_reason) == (known.pieces, known.finish_reason):
            self.num_identical += 1
            return
        gap = self._gap(number, pieces, finish_reason == "stop")
        if gap < MARGIN and pieces != known.pieces:
            self.num_near += 1
            self.largest_gap = max(self.largest_gap, gap)
        else:
            self.wrong.append(f"prompt {number}: a token is {gap:.2f} below the largest logit")

    def _gap(self, number: int, pieces: tuple[str, ...], is_ended: bool) -> float:
        key = (number, pieces, is_ended)
        if key not in self._gaps:
            self._gaps[key] = self.judge(*key)
        return self._gaps[key]


def largest_gap(logits: np.ndarray, token_ids: Sequence[int]) -> float:
    """Return how far the least greedy token lies below the largest logit.

    >>> largest_gap(np.array([[0.0, 3.0], [2.0, 1.5]]), [1, 1])
    0.5
    """
    rows = np.arange(len(token_ids))
    gaps = logits.max(axis=-1) - logits[rows, list(token_ids)]
    return float(gaps.max(initial=0.0))


@torch.inference_mode()
def forced_gap(model: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
    """Read a reply behind a prompt in one pass; return the gap of its least greedy token.

    Args:
        model: Of transformers.
        prompt_ids: The prompt's tokens.
        token_ids: The reply's; none have an infinite gap.
    """
    if not token_ids:
        return float("inf")
    before, place = list(prompt_ids), model.device
    rows = torch.arange(len(before) - 1, len(before) + len(token_ids) - 1, device=place)
    ids = torch.tensor([[*before, *token_ids[:-1]]], device=place)
    output: Any = model(input_ids=ids, logits_to_keep=rows, use_cache=False)
    return largest_gap(output.logits[0].float().cpu().numpy(), token_ids)


def nearly_greedy(
    replies: Sequence[tuple[Sequence[int], Sequence[int]]], *, model: str, dtype: Dtype, seed: int
) -> dict[str, Any]:
    """Say how far replies are from greedy ones, each read behind its prompt by transformers.

    What else is in a batch changes how bfloat16 rounds, so that of two nearly equal tokens the
    other may be drawn.

    Args:
        replies: Tokens of the prompt, and of the reply.
        model: As `--model` takes it.
        dtype: Of its weights.
        seed: Chooses MOST_READ of them where there are more.
    """
    if not replies:
        return {"replies": 0, "largest_gap": 0.0, "margin": MARGIN, "beyond_margin": 0}
    chosen = np.random.default_rng(seed).permutation(len(replies))[:MOST_READ]
    reads = load(model, dtype=dtype).model
    gaps = [forced_gap(reads, *replies[number]) for number in chosen]
    return {
        "replies": len(gaps),
        "largest_gap": round(max(gaps), 3),
        "margin": MARGIN,
        "beyond_margin": sum(gap >= MARGIN for gap in gaps),
    }


class ForcedReplies:
    """Reads a reply behind a prompt in one pass, and says how greedy its tokens are.

    Args:
        engine: Of the model that is served.
        known: The prompts.
    """

    def __init__(self, engine: TransformersEngine, known: Sequence[Known]) -> None:
        self._model = engine.loaded.model
        self._tokenizer = engine.loaded.tokenizer
        self._known = known
        of_character = {character: byte for byte, character in bytes_to_unicode().items()}
        self._ids = {
            bytes(of_character[character] for character in token): token_id
            for token, token_id in self._tokenizer.get_vocab().items()
            if set(token) <= set(of_character)
        }

    def tokens(self, pieces: Sequence[str], is_ended: bool) -> list[list[int]]:
        """Return what the tokens of a reply can be by their texts, with the one that ends it.

        A text holds whole characters only, so that a token may end in bytes of the next text's
        first one, or have no text at all. Each way to cut those bytes makes another reading. Bytes
        that never become a character tell nothing: a reading ends before them.
        """
        texts = list(pieces[:-1] if is_ended else pieces)
        ends = [self._tokenizer.eos_token_id] if is_ended else []
        readings: list[tuple[list[int], bytes]] = [([], b"")]
        for number, text in enumerate(texts):
            if INCOMPLETE in (text or "".join(pieces[number:])[:1]):
                return [ids[:-1] for ids, _ in readings]  # the last may begin the character
            following = "".join(texts[number + 1 :])[:1].encode()
            longer = self._longer(readings, text.encode(), following)
            readings = list(islice(longer, MAX_READINGS))
        return [[*ids, *ends] for ids, _ in readings]

    def _longer(
        self, readings: Sequence[tuple[list[int], bytes]], content: bytes, following: bytes
    ) -> Iterator[tuple[list[int], bytes]]:
        """Yield readings with one more token, and the bytes of the next text that it begins.

        Args:
            readings: Tokens so far, and the bytes of this text that they begin.
            content: The token's text.
            following: The first character after it.
        """
        for ids, begun in readings:
            for num_ahead in range(max(1, len(following))):
                ahead = following[:num_ahead]
                told = content + ahead
                token_id = self._ids.get(told[len(begun) :])
                if told.startswith(begun) and token_id is not None:
                    yield [*ids, token_id], ahead

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, number: int, pieces: tuple[str, ...], is_ended: bool) -> float:
        """Return the gap of a reply's least greedy token under a prompt."""
        readings = self.tokens(pieces, is_ended)
        return min((self._gap(number, ids) for ids in readings), default=float("inf"))

    def _gap(self, number: int, ids: list[int]) -> float:
        return forced_gap(self._model, self._known[number].prompt.token_ids, ids)


@dataclass(frozen=True)
class MixUp:
    """A reply that went wrong on purpose."""

    kind: str
    number: int
    """Of the prompt that gets it."""
    pieces: tuple[str, ...]
    is_ended: bool
    has_another_count: bool
    """It has not as many tokens as the server counted."""


def mix_ups(known: Sequence[Known], *, num_each: int, seed: int) -> Iterator[MixUp]:
    """Yield replies as a server would send them that confuses streams.

    Args:
        known: The prompts with their replies.
        num_each: Of each kind: the reply of another prompt, one that goes on as another, one
            token of another, one token lost, one token twice.
        seed: Draws prompts and places.
    """
    generator = np.random.default_rng(seed)
    for kind in ("swapped", "goes on as another", "a strange token", "a token lost", "one twice"):
        for _ in range(num_each):
            one, other = (int(i) for i in generator.choice(len(known), size=2, replace=False))
            own, theirs = known[one].pieces, known[other].pieces
            at = int(generator.integers(1, min(len(own), len(theirs)) - 1))
            ends_as = other if kind in ("swapped", "goes on as another") else one
            mixed = {
                "swapped": theirs,
                "goes on as another": own[:at] + theirs[at:],
                "a strange token": (*own[:at], theirs[at], *own[at + 1 :]),
                "a token lost": own[:at] + own[at + 1 :],
                "one twice": own[: at + 1] + own[at:],
            }[kind]
            if mixed != own:
                is_ended = known[ends_as].finish_reason == "stop"
                yield MixUp(kind, one, mixed, is_ended, kind in COUNTED)
