"""A baseline without a language model: TF-IDF of words and characters, logistic regression."""

from collections.abc import Sequence
from typing import Self

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import FeatureUnion

from demur.core.examples import Example
from demur.core.protocols import Targets
from demur.core.readings import Array
from demur.detectors._logistic import balanced_weights


def texts_of(examples: Sequence[Example]) -> list[str]:
    """Return what the user says in each."""
    return [example.chat.last_user_text for example in examples]


class TfidfClassifier:
    """Words of one or two, characters of two to five; the penalty is chosen on validation rows."""

    penalties = (0.1, 1.0, 10.0, 100.0)

    def __init__(self) -> None:
        self._features = FeatureUnion(
            [
                ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)),
                (
                    "characters",
                    TfidfVectorizer(
                        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3
                    ),
                ),
            ]
        )
        self._model = LogisticRegression()
        self.c = 0.0
        """The chosen inverse penalty."""

    def fit(
        self,
        train: Sequence[Example],
        targets: Targets,
        *,
        val: Sequence[Example],
        val_unsafe: Array,
    ) -> Self:
        """Fit with the source-balanced weights of `linear`; choose the penalty by AUROC on val."""
        features = self._features.fit_transform(texts_of(train))
        val_features = self._features.transform(texts_of(val))
        weights = balanced_weights(targets, "sources")
        best = -1.0
        for c in self.penalties:
            model = LogisticRegression(C=c, max_iter=2000)
            model.fit(features, targets.unsafe, sample_weight=weights)
            auroc = roc_auc_score(val_unsafe, model.decision_function(val_features))
            if auroc > best:
                best, self.c, self._model = auroc, c, model
        return self

    def score(self, examples: Sequence[Example]) -> Array:
        """Return the scores [prompt]; higher is less safe."""
        scores: Array = self._model.decision_function(self._features.transform(texts_of(examples)))
        return scores
