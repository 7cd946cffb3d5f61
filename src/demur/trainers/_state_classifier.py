"""A logistic regression on a few principal components of states, and what it makes of replies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.modeling.chat import ChatRenderer
from demur.modeling.continuations import states_of_replies
from demur.modeling.load import LoadedModel
from demur.trainers._openings import COMPLIANCES, REFUSALS

NUM_TOKENS = 8
"""Of a reply that count, from its first one on."""


@dataclass(frozen=True)
class StateClassifier:
    """Scores states: coefficients . (basis (state - mean)) + bias, the log-odds of unsafe."""

    mean: Array
    """[d_model], float64, as all of them."""
    basis: Array
    """[component, d_model], orthonormal rows."""
    coefficients: Array
    """[component]."""
    bias: float

    @classmethod
    def fit(
        cls, states: Array, unsafe: Array, *, num_components: int, c: float
    ) -> "StateClassifier":
        """Fit to labelled states.

        Args:
            states: [prompt, d_model].
            unsafe: [prompt], true or false.
            num_components: At most the number of prompts.
            c: Inverse strength of the penalty.
        """
        pca = PCA(num_components, svd_solver="full").fit(states.astype(np.float64))
        logistic = LogisticRegression(C=c, max_iter=10_000)
        logistic.fit(pca.transform(states.astype(np.float64)), unsafe)
        return cls(pca.mean_, pca.components_, logistic.coef_[0], float(logistic.intercept_[0]))

    @property
    def weights(self) -> Array:
        """The one vector [d_model] that orders states as the classifier does."""
        weights: Array = self.basis.T @ self.coefficients
        return weights

    def scores(self, states: Array) -> Array:
        """Return the scores [...] of states [..., d_model]."""
        scores: Array = (states - self.mean) @ self.weights + self.bias
        return scores


@dataclass(frozen=True)
class Separation:
    """How scores tell refusals from compliance, of the same prompts."""

    refusals: Array
    """[prompt, opening, token]; NaN after an opening's end."""
    compliances: Array
    """The same."""

    def auroc(self, token: int | None = None) -> float:
        """Return how often a refusal scores higher than compliance after the same prompt.

        Args:
            token: Of the reply; None takes the mean of all.
        """
        if token is None:
            sides = np.nanmean(self.refusals, 2), np.nanmean(self.compliances, 2)
        else:
            sides = self.refusals[..., token], self.compliances[..., token]
        return float(np.mean([_auroc(*of) for of in zip(*sides, strict=True)]))

    def gap(self) -> float:
        """Return by how much refusals score higher, on the mean of all tokens."""
        return float(np.nanmean(self.refusals) - np.nanmean(self.compliances))


def _auroc(higher: Array, lower: Array) -> float:
    higher, lower = higher[~np.isnan(higher)], lower[~np.isnan(lower)]
    labels = np.repeat([1, 0], [len(higher), len(lower)])
    return float(roc_auc_score(labels, np.concatenate([higher, lower])))


def separation(
    loaded: LoadedModel,
    renderer: ChatRenderer,
    prompts: Sequence[Prompt],
    read: CaptureSpec,
    classifier: StateClassifier,
    *,
    report: Callable[[int], None],
) -> Separation:
    """Score what a model thinks while it reads openings of refusals and of compliance.

    Args:
        loaded: The model.
        renderer: Of its template.
        prompts: None of which the classifier was fitted on; one or more.
        read: Of one layer.
        classifier: Scores states.
        report: Told after each prompt how many are done.
    """
    openings = (*REFUSALS, *COMPLIANCES)
    scores = np.full((len(prompts), len(openings), NUM_TOKENS), np.nan)
    for row, prompt in enumerate(prompts):
        longer = [renderer.with_reply(prompt, text, max_tokens=NUM_TOKENS) for text in openings]
        ids = [of.token_ids[len(prompt) :] for of in longer]
        for column, states in enumerate(states_of_replies(loaded, prompt, ids, read)):
            scores[row, column, : len(states)] = classifier.scores(states)
        report(row + 1)
    return Separation(scores[:, : len(REFUSALS)], scores[:, len(REFUSALS) :])
