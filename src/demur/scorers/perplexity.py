"""How surprised the unguarded model is by a reply: its perplexity, teacher-forced after the chat.

A responder that steers too hard, or a trained model that has collapsed, writes what the model it
came from would never have written; loops are likely in turn, which `collapse` sees.

Paper: Jelinek et al., Perplexity: A Measure of the Difficulty of Speech Recognition Tasks (1977),
Journal of the Acoustical Society of America 62.

Differs: of one reply given its chat, by the base model's own tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from demur.core.errors import DataError
from demur.core.outcomes import EMPTY, Answered, Judgement
from demur.modeling.likelihood import Likelihood
from demur.scorers._with_model import ModelScorer

__all__ = ["Perplexity"]


@dataclass
class Perplexity(ModelScorer):
    """The perplexity of a reply, 1 or more."""

    gives_outcomes: ClassVar[bool] = False
    score_is: ClassVar[str] = "perplexity of the reply under the model"

    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement a reply, in order, with a score and no outcome."""
        likelihood = Likelihood(self.ready())
        return [_judge(likelihood, answer) for answer in answers]


def _judge(likelihood: Likelihood, answer: Answered) -> Judgement:
    if not answer.reply.strip():
        return Judgement("unclear", reason=EMPTY)
    try:
        (values,) = likelihood.log_probs(answer.chat, [answer.reply])
    except DataError as error:
        return Judgement(error=str(error))
    nats = -float(values.mean())
    return Judgement(
        score=math.exp(min(nats, 700.0)), parts={"nats": nats, "num_tokens": len(values)}
    )
