"""TF-IDF of words and characters, and a logistic regression: a baseline without a language model.

Words are taken alone and in pairs, characters in runs of two to five within words; each count c
becomes 1 + log c, is weighed by its inverse document frequency, and each of the two vectors is
scaled to unit length. It knows the words of its training prompts and nothing else: what a detector
of hidden states adds is what it scores above this.

Paper: Salton and Buckley, Term-weighting approaches in automatic text retrieval (1988): the weights
of terms.

Differs: characters beside words; rare terms are left out; logistic regression on top, in which each
label, and within a label each source, weighs the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from demur.core.errors import DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.registry import import_named
from demur.detectors._balance import Balance, require_balance
from demur.detectors._texts import (
    Score,
    TextDetector,
    require_positive,
    vector,
)
from demur.detectors._words import words_from_array, words_to_array

__all__ = ["Tfidf"]

_KINDS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "sublinear_tf": True},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True},
}


@dataclass
class Tfidf(TextDetector):
    """Logistic regression on TF-IDF of words and characters.

    Args:
        reads: `Texts()` alone.
    """

    c: float = 10.0
    """Inverse strength of the L2 penalty, as scikit-learn's `C`, over 0."""
    balance: Balance = "sources"
    """What weighs the same: the sources of each label, the two labels, or every prompt."""
    min_df_words: int = 2
    """Prompts that a word or pair must occur in, 1 or more."""
    min_df_characters: int = 3
    """Prompts that a run of characters must occur in, 1 or more."""
    max_features: int = 200_000
    """Most words and pairs, and most runs of characters, 1 or more: the commonest are kept."""
    max_iterations: int = 2000
    """Most steps of the solver, 1 or more."""

    array_names: ClassVar[tuple[str, ...]] = (
        "words", "word_idf", "characters", "character_idf", "weights", "bias",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require_balance(self.balance)
        require_positive(
            c=self.c,
            min_df_words=self.min_df_words,
            min_df_characters=self.min_df_characters,
            max_features=self.max_features,
            max_iterations=self.max_iterations,
        )

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; `seed` changes nothing, the problem is convex.

        Raises:
            DataError: The readings and targets do not fit together, or no word or no run of
                characters occurs in enough prompts.
        """
        texts = self.texts(readings, num_prompts=len(targets))
        words, word_features = self._terms("words", texts, min_df=self.min_df_words)
        characters, runs = self._terms("characters", texts, min_df=self.min_df_characters)
        model = LogisticRegression(C=self.c, max_iter=self.max_iterations)
        weights = import_named("demur.detectors._logistic").balanced_weights(targets, self.balance)
        features = hstack([word_features, runs], format="csr")
        model.fit(features, targets.unsafe.astype(bool), sample_weight=weights)
        return self.load_state(
            {
                "words": words_to_array(words.get_feature_names_out().tolist()),
                "word_idf": words.idf_,
                "characters": words_to_array(characters.get_feature_names_out().tolist()),
                "character_idf": characters.idf_,
                "weights": model.coef_[0],
                "bias": model.intercept_,
            }
        )

    def _terms(self, kind: str, texts: Sequence[str], *, min_df: int) -> tuple[Any, Any]:
        """Return a fitted vectorizer and the features of its texts [prompt, feature], sparse."""
        vectorizer = TfidfVectorizer(**_KINDS[kind], min_df=min_df, max_features=self.max_features)
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(
                f"of {kind}, nothing occurs in {min_df} or more of these {len(texts)} prompts "
                f"({error}): give more prompts, or a smaller min_df_{kind}"
            ) from error

    def score_with(self, arrays: Mapping[str, Array]) -> Score:
        """Return the score of the fitted vocabulary and weights; see `TextDetector`."""
        vectorizers = [
            _restored("words", arrays, idf="word_idf"),
            _restored("characters", arrays, idf="character_idf"),
        ]
        num_features = sum(len(vectorizer.vocabulary_) for vectorizer in vectorizers)
        weights = vector(arrays, "weights", size=num_features)
        bias = vector(arrays, "bias", size=1)

        def score(texts: Sequence[str]) -> Array:
            parts = [vectorizer.transform(texts) for vectorizer in vectorizers]
            # A sparse row is summed by itself, in the order of its terms.
            scores: Array = hstack(parts, format="csr") @ weights + bias
            return scores

        return score


def _restored(kind: str, arrays: Mapping[str, Array], *, idf: str) -> Any:
    """Return a vectorizer as it was fitted."""
    terms = words_from_array(arrays[kind], name=kind)
    vectorizer = TfidfVectorizer(**_KINDS[kind], vocabulary=terms)
    vectorizer.idf_ = vector(arrays, idf, size=len(terms))
    return vectorizer
