"""How far two labellers agree beyond chance: Cohen's kappa, with an interval over groups.

1 is full agreement, 0 is what two labellers would reach who use each word as often but blindly.
Replies to one request are drawn together, since labellers tend to fail on all of them or none.

Paper: Cohen, A Coefficient of Agreement for Nominal Scales (1960), Educational and Psychological
Measurement 20(1).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.metrics.group_bootstrap import GroupBootstrap

__all__ = ["CohenKappa"]


@dataclass(frozen=True)
class CohenKappa:
    """Agreement of two labellers on some replies."""

    value: float | None
    """-1 to 1; None of no replies, or where both use one and the same label throughout."""
    interval: tuple[float, float] | None
    """By a bootstrap over groups; None if fewer than half of the draws have a kappa."""
    agreement: float | None
    """Share of replies with equal labels, 0 to 1."""
    num_replies: int

    @classmethod
    def of(
        cls, first: Array, second: Array, *, group: Array, num_draws: int = 1000, seed: int = 0
    ) -> Self:
        """Return the agreement of two labellers.

        Args:
            first: [reply], labels of any kind.
            second: [reply], labels of the same kind.
            group: [reply]; replies of one group are drawn together.
            num_draws: Of the bootstrap.
            seed: Of the draws.

        Raises:
            DataError: The arrays are not of one length.

        >>> labels = np.array(["a", "a", "b", "b"])
        >>> CohenKappa.of(labels, np.array(["a", "a", "b", "a"]), group=np.arange(4)).value
        0.5
        """
        if not len(first) == len(second) == len(group):
            raise DataError(
                f"{len(first)} and {len(second)} labels with {len(group)} groups: expected as many"
            )
        bootstrap = GroupBootstrap([group], num_draws=num_draws, seed=seed)
        draws = bootstrap.draws({"kappa": lambda rows: _kappa(first[rows], second[rows])}, group)
        return cls(
            value=_kappa(first, second),
            interval=bootstrap.interval(draws["kappa"]),
            agreement=float((first == second).mean()) if len(first) else None,
            num_replies=len(first),
        )


def _kappa(first: Array, second: Array) -> float | None:
    """Return kappa; None where chance alone agrees fully."""
    if not len(first):
        return None
    by_chance = sum(
        float((first == label).mean() * (second == label).mean()) for label in np.unique(first)
    )
    if by_chance >= 1:
        return None
    return float(((first == second).mean() - by_chance) / (1 - by_chance))
