"""How reranked replies go on: likeliest tokens are tried by the model, or by a draft head.

What the model has to read of several replies, it reads in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.reads import CaptureSpec
from demur.engines.transformers.sampling import Drawn
from demur.modeling.caches import keep_one
from demur.modeling.draft import DraftHead
from demur.modeling.load import LoadedModel
from demur.modeling.reranking import Reranking
from demur.modeling.tries import States, Tried, Try, try_tokens


class Lookahead(Protocol):
    """Chooses the tokens of one reply; a step calls all four, in this order."""

    def asks(self, also: Sequence[CaptureSpec]) -> Try | None:
        """Return what has to be read before a token can be chosen; None if nothing has.

        Args:
            also: What will be asked of the token's state.
        """

    def choose(self, tried: Tried | None) -> Drawn:
        """Return the next token, from what was asked for."""

    def goes_on(self, also: Sequence[CaptureSpec]) -> Try | None:
        """Return what has to be read of the token that was chosen; None if it was."""

    def take(self, tried: Tried | None) -> States:
        """Go on to the token that was chosen, and return its states [1, layer, d_model]."""


@dataclass(eq=False)
class ByModel:
    """Reads all candidates in one pass of the model, which is the pass of the chosen one, too."""

    rule: Reranking
    logits: Tensor
    """Of the last token that was read, [vocabulary]."""
    cache: DynamicCache
    _candidates: list[int] = field(default_factory=list, init=False)
    _states: States = field(default_factory=dict, init=False)

    def asks(self, also: Sequence[CaptureSpec]) -> Try:
        """Return the candidates."""
        candidates = self._candidates = self.rule.candidates(self.logits)

        def choice(states: States) -> int:
            of_rule = torch.from_numpy(states[self.rule.read][:, 0])
            return self.rule.choice(self.logits, candidates, of_rule)

        return Try(self.cache, candidates, dict.fromkeys([self.rule.read, *also]), choice)

    def choose(self, tried: Tried | None) -> Drawn:
        """Return the next token."""
        assert tried is not None, "candidates are always tried"
        drawn = _drawn(self.logits, self._candidates[tried.index])
        self.logits, self.cache = tried.logits, tried.cache
        one = slice(tried.index, tried.index + 1)
        self._states = {read: of[one] for read, of in tried.states.items()}
        return drawn

    def goes_on(self, also: Sequence[CaptureSpec]) -> None:
        """Say that the token was read when it was tried."""

    def take(self, tried: Tried | None) -> States:
        """Return the states of the token that was chosen."""
        return self._states


@dataclass(eq=False)
class ByDraft:
    """Lets a draft head guess the candidates' states; the model reads the chosen one alone."""

    rule: Reranking
    draft: DraftHead
    logits: Tensor
    """Of the last token that was read, [vocabulary]."""
    cache: DynamicCache
    state: Tensor
    """Of the last token that was read, [d_model], as the model had it."""
    _of_draft: DynamicCache = field(default_factory=DynamicCache, init=False)
    _token: int = field(default=-1, init=False)

    def asks(self, also: Sequence[CaptureSpec]) -> None:
        """Say that the model reads nothing."""

    def choose(self, tried: Tried | None) -> Drawn:
        """Return the next token."""
        candidates = self.rule.candidates(self.logits)
        length = self._of_draft.get_seq_length()
        guesses, longer = self.draft.guess(
            self.state, candidates, self._of_draft, position=self.cache.get_seq_length()
        )
        index = self.rule.choice(self.logits, candidates, guesses)
        self._of_draft = keep_one(longer, length=length, num_tried=len(candidates), index=index)
        self._token = candidates[index]
        return _drawn(self.logits, self._token)

    def goes_on(self, also: Sequence[CaptureSpec]) -> Try:
        """Return the token that was chosen."""
        return Try(self.cache, [self._token], dict.fromkeys([self.rule.read, *also]), _the_first)

    def take(self, tried: Tried | None) -> States:
        """Take over what was read of it, and return its states."""
        assert tried is not None, "the token is always read"
        self.logits, self.cache = tried.logits, tried.cache
        self.state = torch.from_numpy(tried.states[self.rule.read][0, 0])
        return tried.states


def try_all(loaded: LoadedModel, tries: Sequence[Try | None]) -> list[Tried | Exception | None]:
    """Read what several replies ask for: those with as many tokens share a pass, and its failure.

    Args:
        loaded: The model.
        tries: One a reply.
    """
    found: list[Tried | Exception | None] = [None] * len(tries)
    by_count: dict[int, list[tuple[int, Try]]] = {}
    for row, of in enumerate(tries):
        if of is not None:
            by_count.setdefault(len(of.token_ids), []).append((row, of))
    for group in by_count.values():
        rows, asked = zip(*group, strict=True)
        try:
            tried: Sequence[Tried | Exception] = try_tokens(loaded, asked)
        except Exception as error:
            tried = [error] * len(rows)
        for row, of_row in zip(rows, tried, strict=True):
            found[row] = of_row
    return found


def _the_first(states: States) -> int:
    return 0


def _drawn(logits: Tensor, token_id: int) -> Drawn:
    return Drawn(token_id, float(torch.log_softmax(logits, -1)[token_id]))
