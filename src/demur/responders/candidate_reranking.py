"""Answers flagged prompts with those of the likeliest tokens that a classifier prefers.

At each step the state after each of the likeliest tokens is scored by a classifier of unsafe
prompts, and the token of the best score is taken. What scores high are the first words of a
refusal: a model that knows the prompt to be unsafe goes on in that state. A model that has no such
word among its likeliest cannot be helped.

Paper: Zeng et al., Root Defence Strategies: Ensuring Safety of LLM at the Decoding Level (ACL
2025), arXiv 2410.06809, Eq. 9: the token is the argmax of the candidates' scores.

Differs: only flagged prompts are answered so. A draft head guesses states, but no tokens: the model
reads each token that is taken, so that a reply is as fast as a greedy one at best. The token's
log-probability counts, too, unless lm_weight is 0: in the middle of a reply the words of a harmful
answer score high as well, and an aligned model of 0.5B refused less by the score alone
(`benchmarks/results/rds.md`). An end token is a candidate like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.errors import ConfigError
from demur.core.interventions import Draft, RerankTokens
from demur.core.reads import CaptureSpec
from demur.core.results import Verdict
from demur.core.trained import Trained
from demur.core.types import Chat

__all__ = ["CandidateReranking"]


@dataclass(frozen=True)
class CandidateReranking:
    """Answers flagged prompts by reranking the likeliest tokens."""

    trained: Trained
    """Holds `weights` [d_model], `layer`, `site` and `sign`, and the draft's tensors if it has
    any."""
    top_k: int = 10
    """How many tokens are tried in each step, 1 or more; the paper's code takes about 10."""
    lm_weight: float = 1.0
    """Of a token's log-probability in nats, beside the classifier's logit; 0 is the paper's."""
    uses_draft: bool = False
    """Let the draft guess the states: nearly as fast as greedy decoding, and less exact."""

    ignores_verdicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an artifact that lacks what is asked for."""
        if self.uses_draft and not self._draft_keys:
            raise ConfigError(
                f"{self.trained.folder} holds no draft: train it with `demur train "
                "candidate_reranking -p draft=true`, or leave uses_draft out"
            )
        _ = self.returns

    @property
    def _draft_keys(self) -> tuple[str, ...]:
        return tuple(key for key in self.trained.keys if key.startswith("draft."))

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({RerankTokens})

    @property
    def returns(self) -> tuple[RerankTokens]:
        """The intervention, for every chat."""
        draft = Draft(tuple(map(self.trained.tensor, self._draft_keys)))
        intervention = RerankTokens(
            self.top_k,
            CaptureSpec((self.trained.value("layer"),), site=self.trained.value("site")),
            self.trained.tensor("weights"),
            sign=self.trained.value("sign"),
            lm_weight=self.lm_weight,
            draft=draft if self.uses_draft else None,
        )
        return (intervention,)

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> RerankTokens:
        """Return how the reply's tokens are chosen."""
        return self.returns[0]
