"""What adapters are trained for: losses of the log-probabilities of labels.

A step's rows are read in several parts; each part gives its share of the step's loss, so that the
parts' gradients add up to those of the whole step. All losses are in nats.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from demur.trainers._rows import Row, Rows

LogProbs = Sequence[Tensor]
"""Of the labels of each row of a group, [label] a row."""
LengthNorm = Literal["sum", "mean"]


@dataclass(frozen=True)
class Share:
    """What a part of a step's rows gives."""

    loss: Tensor
    """A number; the shares of all parts add up to the step's loss."""
    watched: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By name a sum and how many it is of; a step's value is the quotient over all parts."""


class Objective(Protocol):
    """A loss over the rows of a step."""

    def share(
        self, part: Sequence[Rows], log_probs: Sequence[LogProbs], whole: Sequence[Rows]
    ) -> Share:
        """Return what a part gives.

        Args:
            part: Groups of rows.
            log_probs: Of each group's labels.
            whole: All groups of the step.
        """


@dataclass(frozen=True)
class TokenMean:
    """The mean over all labels of a step: -(1 / N) sum log p(label)."""

    def share(
        self, part: Sequence[Rows], log_probs: Sequence[LogProbs], whole: Sequence[Rows]
    ) -> Share:
        """Return what a part gives."""
        num_labels = sum(row.num_labels for rows in whole for row in rows)
        loss = -_added(values for of_group in log_probs for values in of_group) / num_labels
        return Share(loss, nll_by_kind(part, log_probs))


@dataclass(frozen=True)
class Unlearning:
    """The chosen replies' mean loss, less a share of the rejected ones': l_p - weight * l_d."""

    weight: float
    limit: float
    """Nats that a rejected token's loss counts at most."""

    def share(
        self, part: Sequence[Rows], log_probs: Sequence[LogProbs], whole: Sequence[Rows]
    ) -> Share:
        """Return what a part gives."""
        chosen = -_added(of[0] for of in log_probs)
        rejected = _added((-of[1]).clamp(max=self.limit) for of in log_probs)
        num_chosen, num_rejected = (sum(rows[side].num_labels for rows in whole) for side in (0, 1))
        loss = chosen / num_chosen - self.weight * rejected / num_rejected
        return Share(loss, nll_by_kind(part, log_probs))


@dataclass(frozen=True)
class Preference:
    """-log sigmoid(beta_chosen * r(chosen) - beta_rejected * r(rejected)), the mean over pairs.

    r is how much likelier a reply is than under the model by itself: log pi(y | x) - log pi_ref(y |
    x), summed over its tokens or their mean.
    """

    beta_chosen: float
    beta_rejected: float
    length_norm: LengthNorm
    reference: Mapping[Row, float]
    """Of each row, the log-probability under the model by itself, summed or their mean."""

    def share(
        self, part: Sequence[Rows], log_probs: Sequence[LogProbs], whole: Sequence[Rows]
    ) -> Share:
        """Return what a part gives."""
        chosen, rejected = (
            torch.stack(
                [
                    self.whole_reply(of[side]) - self.reference[rows[side]]
                    for rows, of in zip(part, log_probs, strict=True)
                ]
            )
            for side in (0, 1)
        )
        margins = self.beta_chosen * chosen - self.beta_rejected * rejected
        loss = -functional.logsigmoid(margins).sum() / len(whole)
        watched = {
            "margin": (float(margins.detach().sum()), float(len(part))),
            "pairs in order": (float((margins.detach() > 0).sum()), float(len(part))),
        }
        return Share(loss, {**watched, **nll_by_kind(part, log_probs)})

    def whole_reply(self, log_probs: Tensor) -> Tensor:
        """Return the log-probability of a reply, of those of its tokens [token]."""
        return log_probs.sum() if self.length_norm == "sum" else log_probs.mean()


def nll_by_kind(
    part: Sequence[Rows], log_probs: Sequence[LogProbs]
) -> dict[str, tuple[float, float]]:
    """Return by type of row the sum of -log p over its labels, and how many these are."""
    found: dict[str, tuple[float, float]] = {}
    for rows, of_group in zip(part, log_probs, strict=True):
        for row, values in zip(rows, of_group, strict=True):
            name = f"loss, {row.kind.replace('_', ' ')}"
            before, count = found.get(name, (0.0, 0.0))
            found[name] = (before - float(values.detach().sum()), count + len(values))
    return found


def _added(values: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(values)).sum()
