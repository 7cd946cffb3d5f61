"""What a model's last state says of its behaviour: a few coordinates, and two logits on them.

x is the normed state at a prompt's last token. The coordinates are those of its first principal
components, each divided by its standard deviation; the rest is x less its projection onto them,
divided by the root mean square of the training prompts' rests. So the orthonormal basis of the
rest is never needed: the length of a difference is the same in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from demur.core.readings import Array


@dataclass(frozen=True, eq=False)
class Losses:
    """Of each prompt, [prompt]: how far it is from where the soft prompt should move it."""

    compliance: Tensor
    """L_r: unsafe prompts should become less likely to be complied with, safe ones more."""
    harmlessness: Tensor
    """L_h: unsafe prompts should look less harmless, safe ones more."""
    rest: Tensor
    """L_U: the squared move of everything else, a coordinate: 1 is the spread of prompts."""

    def total(self, *, harmlessness_weight: float, rest_weight: float) -> Tensor:
        """Return the weighted sum, [prompt]."""
        return self.compliance + harmlessness_weight * self.harmlessness + rest_weight * self.rest


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Coordinates of states, and logits on them."""

    mean: Tensor
    """[d_model]."""
    components: Tensor
    """[component, d_model], orthonormal."""
    scales: Tensor
    """[component]: the standard deviations of the coordinates."""
    rest_scale: float
    """The root mean square of the rest, a coordinate."""
    logits: Mapping[str, Tensor]
    """`compliance` and `harmlessness`: weights and bias, [component + 1]. A higher logit means that
    the model is likelier to comply, or that the prompt is likelier to be harmless."""

    @classmethod
    def fit(
        cls, states: Array, compliance: Array, harmless: Array, *, num_components: int, like: Tensor
    ) -> Self:
        """Fit the coordinates, and the logits by logistic regressions on soft labels.

        Args:
            states: [prompt, d_model].
            compliance: [prompt], from 0 to 1: how likely the model is to comply.
            harmless: [prompt], 1 for safe prompts and 0 for unsafe ones.
            num_components: At least 1, at most the number of prompts less 1.
            like: A tensor of the number format and on the device that the parts get.
        """
        states = states.astype(np.float64)
        pca = PCA(num_components, svd_solver="full").fit(states)
        projected, scales = pca.transform(states), np.sqrt(pca.explained_variance_)
        rests = states - pca.inverse_transform(projected)
        mean_square = (rests**2).sum(1).mean() / (states.shape[1] - num_components)
        logits = {
            "compliance": _logistic(projected / scales, compliance),
            "harmlessness": _logistic(projected / scales, harmless),
        }
        return cls(
            mean=torch.tensor(pca.mean_).to(like),
            components=torch.tensor(pca.components_).to(like),
            scales=torch.tensor(scales).to(like),
            rest_scale=float(np.sqrt(mean_square)),
            logits={name: torch.tensor(parts).to(like) for name, parts in logits.items()},
        )

    def coordinates(self, states: Tensor) -> Tensor:
        """Return the coordinates [prompt, component] of states [prompt, d_model]."""
        return (states - self.mean) @ self.components.T / self.scales

    def logit(self, name: str, states: Tensor) -> Tensor:
        """Return a logit [prompt] of states [prompt, d_model]."""
        parts = self.logits[name]
        return self.coordinates(states) @ parts[:-1] + parts[-1]

    def drift(self, states: Tensor, initial: Tensor) -> Tensor:
        """Return L_U [prompt] between states and initial ones, both [prompt, d_model]."""
        move = states - initial
        rest = move - move @ self.components.T @ self.components
        return (rest / self.rest_scale).square().sum(-1) / (rest.shape[-1] - len(self.components))

    def losses(self, states: Tensor, initial: Tensor, harmless: Tensor) -> Losses:
        """Return the losses of states under a soft prompt.

        Args:
            states: [prompt, d_model].
            initial: The same prompts' states under the safety prompt itself.
            harmless: [prompt], 1 for safe prompts and 0 for unsafe ones.
        """
        of_logits = {
            name: binary_cross_entropy_with_logits(
                self.logit(name, states) - self.logit(name, initial), harmless, reduction="none"
            )
            for name in self.logits
        }
        return Losses(**of_logits, rest=self.drift(states, initial))


def _logistic(coordinates: Array, soft: Array) -> Array:
    """Return the weights and the bias [component + 1] of a logistic regression on soft labels.

    Each prompt counts twice, as a positive by its label and as a negative by what is left of 1,
    which is the cross-entropy of the soft label.
    """
    weights = np.concatenate([soft, 1 - soft])
    labels = np.repeat([1, 0], len(soft))
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
    model.fit(np.concatenate([coordinates, coordinates]), labels, sample_weight=weights)
    return np.concatenate([model.coef_[0], model.intercept_])
