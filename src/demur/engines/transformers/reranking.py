"""How a reranked reply goes on: its likeliest tokens are tried by the model, or by a draft head."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.engines.transformers.sampling import Drawn
from demur.modeling.caches import keep_one
from demur.modeling.draft import DraftHead
from demur.modeling.load import LoadedModel
from demur.modeling.reranking import Reranking
from demur.modeling.tries import States, read_on, try_tokens


class Lookahead(Protocol):
    """Chooses the tokens of one reply; a step is a call of each of the two, in this order."""

    def choose(self, also: Sequence[CaptureSpec]) -> Drawn:
        """Return the next token.

        Args:
            also: What will be asked of its state.
        """

    def read(self, also: Sequence[CaptureSpec]) -> dict[CaptureSpec, Array]:
        """Go on to the token that was chosen, and return its states [layer, d_model]."""


@dataclass(eq=False)
class ByModel:
    """Reads all candidates in one pass of the model, which is the pass of the chosen one, too."""

    loaded: LoadedModel
    rule: Reranking
    logits: Tensor
    """Of the last token that was read, [vocabulary]."""
    cache: DynamicCache
    _states: dict[CaptureSpec, Array] = field(default_factory=dict, init=False)

    def choose(self, also: Sequence[CaptureSpec]) -> Drawn:
        """Return the next token."""
        candidates = self.rule.candidates(self.logits)

        def choice(states: States) -> int:
            of_rule = torch.from_numpy(states[self.rule.read][:, 0])
            return self.rule.choice(self.logits, candidates, of_rule)

        reads = dict.fromkeys([self.rule.read, *also])
        tried = try_tokens(self.loaded, self.cache, candidates, reads, choice)
        drawn = _drawn(self.logits, candidates[tried.index])
        self.logits, self.cache = tried.logits, tried.cache
        self._states = {read: of[tried.index] for read, of in tried.states.items()}
        return drawn

    def read(self, also: Sequence[CaptureSpec]) -> dict[CaptureSpec, Array]:
        """Return the states of the token that was chosen."""
        return self._states


@dataclass(eq=False)
class ByDraft:
    """Lets a draft head guess the candidates' states; the model reads the chosen one alone."""

    loaded: LoadedModel
    rule: Reranking
    draft: DraftHead
    logits: Tensor
    """Of the last token that was read, [vocabulary]."""
    cache: DynamicCache
    """Grows with the reply."""
    state: Tensor
    """Of the last token that was read, [d_model], as the model had it."""
    _of_draft: DynamicCache = field(default_factory=DynamicCache, init=False)
    _token: int = field(default=-1, init=False)

    def choose(self, also: Sequence[CaptureSpec]) -> Drawn:
        """Return the next token."""
        candidates = self.rule.candidates(self.logits)
        length = self._of_draft.get_seq_length()
        guesses, longer = self.draft.guess(
            self.state, candidates, self._of_draft, position=self.cache.get_seq_length()
        )
        index = self.rule.choice(self.logits, candidates, guesses)
        self._of_draft = keep_one(longer, length=length, index=index)
        self._token = candidates[index]
        return _drawn(self.logits, self._token)

    def read(self, also: Sequence[CaptureSpec]) -> dict[CaptureSpec, Array]:
        """Read the token that was chosen, and return its states."""
        reads = dict.fromkeys([self.rule.read, *also])
        self.logits, states = read_on(self.loaded, [self._token], self.cache, reads)
        self.state = torch.from_numpy(states[self.rule.read][0])
        return states


def _drawn(logits: Tensor, token_id: int) -> Drawn:
    return Drawn(token_id, float(torch.log_softmax(logits, -1)[token_id]))
