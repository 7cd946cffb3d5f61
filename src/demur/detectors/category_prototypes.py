"""Prototypes of categories: one Gaussian a harm category and one for safe prompts.

Each category of unsafe prompts has a mean of its own; all classes share one covariance, whose ridge
needs no tuning (see `prototypes`). The score is the logarithm of the odds of harm: the posteriors
of all harmful categories are summed, so that a prompt between two of them is not taken for safe.
Which category it is comes with the score, and a category can be added or taken away without a fit.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025), arXiv 2502.16174 v2, the study of
customisation.

Differs: the paper flags if the likeliest class is harmful; a split harmful mass can then lose to
safe, so posteriors are summed. Categories of fewer than `min_prompts` prompts, and unsafe prompts
without one, share the class `other`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, middle_layer
from demur.detectors._mergeable import MergeableDetector, require_fitted
from demur.detectors._moments import Moments, log_posteriors
from demur.detectors._states import row_scores
from demur.detectors._words import words_from_array, words_to_array

__all__ = ["CategoryPrototypes"]

SAFE, OTHER = "safe", "other"


@dataclass
class CategoryPrototypes(MergeableDetector):
    """A Gaussian discriminant over safe prompts and harm categories.

    Args:
        reads: Pooled captures; their states are joined.
    """

    min_prompts: int = 100
    """Fewest prompts of a category of its own, over 0."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.min_prompts < 1:
            raise ConfigError(f"min_prompts is {self.min_prompts}: expected 1 or more")
        self.weights_: Array | None = None
        self.biases_: Array = np.zeros(0)

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks)),)

    def _classes(self, targets: Targets) -> tuple[Sequence[str], Array]:
        unsafe = targets.unsafe.astype(bool)
        given = targets.category if targets.category is not None else np.full(len(targets), "")
        category = [" ".join(str(name).split("\n")) for name in given]
        counts = Counter(name for name, harms in zip(category, unsafe, strict=True) if harms)
        of_own = {name for name, n in counts.items() if n >= self.min_prompts} - {"", SAFE, OTHER}
        names = (SAFE, *sorted(of_own))
        if counts.keys() - of_own:
            names = (*names, OTHER)
        number = {name: index for index, name in enumerate(names)}
        classes = [
            number.get(name, len(names) - 1) if harms else 0
            for name, harms in zip(category, unsafe, strict=True)
        ]
        return names, np.array(classes)

    def _solve(self, moments: Moments, names: Sequence[str]) -> None:
        if SAFE not in names or len(names) < 2:
            raise DataError(f"only {list(names)} prompts are left: both labels are needed")
        self.weights_, self.biases_ = log_posteriors(moments)

    def posteriors(self, readings: Readings) -> Array:
        """Return the probability of each class [prompt, class], in the order of `class_names_`.

        Raises:
            NotFittedError: The detector was not fitted.
            DataError: A state is not finite.
        """
        logits = self._logits(readings)
        odds: Array = np.exp(logits - logits.max(1, keepdims=True))
        posteriors: Array = odds / odds.sum(1, keepdims=True)
        return posteriors

    def decision_function(self, readings: Readings) -> Array:
        """Return the logarithm of the odds of harm [prompt]."""
        logits = self._logits(readings)
        is_safe = np.array([name == SAFE for name in self.class_names_])
        harm = logits[:, ~is_safe]
        top = harm.max(1)
        summed: Array = top + np.log(np.exp(harm - top[:, None]).sum(1))
        scores: Array = summed - logits[:, is_safe][:, 0]
        return scores

    def _logits(self, readings: Readings) -> Array:
        require_fitted(self, self.weights_)
        assert self.weights_ is not None
        return row_scores(self._features(readings), self.weights_) + self.biases_

    def state(self) -> dict[str, Array]:
        """Return `weights` [class, feature], `biases` [class] and `class_names` [byte]."""
        require_fitted(self, self.weights_)
        assert self.weights_ is not None
        return {
            "weights": self.weights_,
            "biases": self.biases_,
            "class_names": words_to_array(self.class_names_),
        }

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        if set(state) != {"weights", "biases", "class_names"}:
            raise DataError(
                f"the state holds {sorted(state)}: expected weights, biases, class_names"
            )
        names = tuple(words_from_array(state["class_names"], name="class_names"))
        if len(state["weights"]) != len(names) or len(state["biases"]) != len(names):
            raise DataError(f"the state has {len(names)} names for {len(state['weights'])} classes")
        self.class_names_, self.weights_, self.biases_ = names, state["weights"], state["biases"]
        return self
