"""What became of replies, by two labellers that share no rule, and how they read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.outcomes import COLLAPSED, Answered, Scorer
from demur.core.readings import Array
from demur.core.registry import load
from demur.core.types import Chat
from demur.guard.kept_replies import KeptReply
from demur.scorers.collapse import Collapse

Surprise = Callable[[Sequence[Answered]], Array]
"""Returns the perplexity of each reply, [reply]; NaN where there is none."""


@dataclass(frozen=True)
class Outcomes:
    """What became of the replies to some prompts; all arrays are [prompt]."""

    outcome: Array
    """Words of `core.outcomes`, by the first labeller; `unclear` where a reply has collapsed."""
    second: Array
    """The same by the second one."""
    collapsed: Array
    """True for a reply that is no language any more."""
    perplexity: Array
    """Of the reply, under the model by itself; NaN where it was not asked for."""

    def where(self, use_other: Array, other: "Outcomes") -> "Outcomes":
        """Return the outcomes with those of other replies to the same prompts in some rows."""
        return Outcomes(
            np.where(use_other, other.outcome, self.outcome),
            np.where(use_other, other.second, self.second),
            np.where(use_other, other.collapsed, self.collapsed),
            np.where(use_other, other.perplexity, self.perplexity),
        )

    def of(self, rows: Array) -> "Outcomes":
        """Return those of some rows."""
        return Outcomes(
            self.outcome[rows], self.second[rows], self.collapsed[rows], self.perplexity[rows]
        )


@dataclass(frozen=True)
class Labelling:
    """Labels replies.

    Args:
        labellers: The names of two scorers that give outcomes; rates go by the first.
        surprise: Gives perplexities; None leaves them out.
    """

    labellers: tuple[str, str]
    surprise: Surprise | None = None

    def label(self, chats: Sequence[Chat], replies: Sequence[KeptReply]) -> Outcomes:
        """Return what became of replies.

        Raises:
            ConfigError: There is no such scorer.
        """
        answers = [Answered(c, r.text) for c, r in zip(chats, replies, strict=True)]
        collapsed = np.array([found.reason == COLLAPSED for found in Collapse().judge(answers)])
        first, second = (self._outcomes(name, answers, collapsed) for name in self.labellers)
        surprise = self.surprise or _unknown
        return Outcomes(first, second, collapsed, surprise(answers))

    def _outcomes(self, name: str, answers: Sequence[Answered], collapsed: Array) -> Array:
        scorer: Scorer = load("scorers", name)()
        outcomes = np.array([str(found.outcome) for found in scorer.judge(answers)])
        return np.where(collapsed, "unclear", outcomes)


def _unknown(answers: Sequence[Answered]) -> Array:
    return np.full(len(answers), np.nan)
