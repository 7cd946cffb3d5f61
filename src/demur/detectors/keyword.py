"""How many words of a list a prompt holds: the operator's own list, or one drawn from the data.

Without a list, `fit` takes the words that set unsafe texts apart from safe ones: those with the
highest z-score of the log-odds ratio, under a Dirichlet prior that follows how often each word is
used in all texts together. The score is the number of different keywords in the text, in any case
of letters and as whole words; a script without spaces between words is not split into any.

Paper: Monroe, Colaresi and Quinn, Fightin' Words (2008), Political Analysis 16(4): the z-score of
log-odds with an informative Dirichlet prior.

Differs: the paper lists words that tell two groups of speakers apart; here they are counted in a
text. The prior's frequencies come from the two groups themselves, not from a third corpus. Words
that unsafe texts do not use more are never taken, so the list may be shorter than asked for.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.detectors._texts import (
    Score,
    TextDetector,
    require_positive,
)
from demur.detectors._words import words_from_array, words_to_array

__all__ = ["Keyword"]


@dataclass
class Keyword(TextDetector):
    """Count the different keywords in a text.

    Args:
        reads: `Texts()` alone.
    """

    keywords: tuple[str, ...] = ()
    """The operator's own words or phrases; none leaves the choice to `fit`."""
    num_keywords: int = 100
    """Most words that `fit` chooses, 1 or more."""
    prior_words: float = 500.0
    """How many words of text the prior counts for (the paper's alpha_0), over 0: the more, the less
    a rare word can stand out."""

    array_names: ClassVar[tuple[str, ...]] = ("keywords",)

    def __post_init__(self) -> None:
        """Refuse values out of range; a list, as JSON has it, becomes a tuple."""
        super().__post_init__()
        require_positive(num_keywords=self.num_keywords, prior_words=self.prior_words)
        if isinstance(self.keywords, str):
            raise ConfigError(f"keywords is the text {self.keywords!r}: expected a list of texts")
        self.keywords = tuple(self.keywords)
        for keyword in self.keywords:
            if not isinstance(keyword, str) or not keyword.strip():
                raise ConfigError(f"keywords holds {keyword!r}: expected a word or phrase")

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Choose keywords where the operator gave none, and return self; nothing is random.

        Raises:
            DataError: The readings and targets do not fit together, or no word is more common in
                unsafe texts than in safe ones.
        """
        texts = self.texts(readings, num_prompts=len(targets))
        chosen = [folded(keyword) for keyword in self.keywords] or self._choose(texts, targets)
        return self.load_state({"keywords": words_to_array(list(dict.fromkeys(chosen)))})

    def _choose(self, texts: Sequence[str], targets: Targets) -> list[str]:
        labelled = list(zip(texts, targets.unsafe.astype(bool).tolist(), strict=True))
        z_scores = log_odds_z_scores(
            word_counts(text for text, is_unsafe in labelled if is_unsafe),
            word_counts(text for text, is_unsafe in labelled if not is_unsafe),
            prior_words=self.prior_words,
        )
        ranked = sorted(z_scores, key=lambda word: (-z_scores[word], word))
        chosen = [word for word in ranked[: self.num_keywords] if z_scores[word] > 0]
        if not chosen:
            raise DataError(
                f"no word of these {len(texts)} prompts is more common in unsafe texts than in "
                "safe ones: give more prompts, or keywords of your own"
            )
        return chosen

    def score_with(self, arrays: Mapping[str, Array]) -> Score:
        """Return the number of different keywords in each text; see `TextDetector`."""
        patterns = [
            (keyword, whole_words(keyword))
            for keyword in words_from_array(arrays["keywords"], name="keywords")
        ]

        def count(text: str) -> int:
            # Looking for the plain characters first is many times faster than the pattern alone.
            return sum(word in text and bool(pattern.search(text)) for word, pattern in patterns)

        def score(texts: Sequence[str]) -> Array:
            return np.array([count(folded(text)) for text in texts], np.float64)

        return score


def folded(text: str) -> str:
    r"""Return a text without its case, and with single spaces.

    >>> folded(" Große\n HAND ")
    'grosse hand'
    """
    return " ".join(text.casefold().split())


def whole_words(keyword: str) -> re.Pattern[str]:
    """Return a pattern of a keyword that does not begin or end inside a word."""
    before = r"(?<!\w)" if re.match(r"\w", keyword[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", keyword[-1]) else ""
    return re.compile(before + re.escape(keyword) + after)


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs in some texts, without its case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"\w+", folded(text)))
    return counts


def log_odds_z_scores(
    unsafe: Mapping[str, int], safe: Mapping[str, int], *, prior_words: float
) -> dict[str, float]:
    """Return the z-score of each word's log-odds ratio, unsafe against safe.

    Args:
        unsafe: How often each word occurs in unsafe texts.
        safe: The same of safe texts.
        prior_words: The sum of the prior's counts, which are shared out as the words of all texts
            are.
    """
    words = list(dict.fromkeys([*unsafe, *safe]))
    first, second = (
        np.array([counts.get(word, 0) for word in words], np.float64) for counts in (unsafe, safe)
    )
    together = first + second
    prior = prior_words * together / together.sum()
    first, second = first + prior, second + prior
    odds = [np.log(counts / (counts.sum() - counts)) for counts in (first, second)]
    z_scores: Array = (odds[0] - odds[1]) / np.sqrt(1 / first + 1 / second)
    return dict(zip(words, z_scores.tolist(), strict=True))
