"""Intervals of anything else: the bootstrap, drawing groups of prompts instead of prompts.

All sets are drawn together, so that what two scorers, or two sets, have in common stays common: a
difference of draws is a paired one, and a mean over sets has the interval that it should. A group
that stands in several sets (a request, and the attacks made from it) is drawn once for all of them.
Groups are drawn among those that stand in the same sets, so that the sets keep their sizes.

Paper: Efron, Bootstrap Methods: Another Look at the Jackknife (1979), Annals of Statistics 7(1);
Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8: whole clusters.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array

__all__ = ["GroupBootstrap"]

Key = TypeVar("Key", bound=Hashable)
Statistic = Callable[[Array], float | None]
"""Returns a number of the prompts in some rows; None where there is none."""


class GroupBootstrap:
    """Draws of the groups of some sets.

    Args:
        sets: The group of each prompt, an array [prompt] a set.
        num_draws: More make the ends of the intervals steadier, 1 or more.
        seed: Of the draws.

    Raises:
        ConfigError: There are no draws.
    """

    def __init__(self, sets: Sequence[Array], *, num_draws: int = 1000, seed: int = 0) -> None:
        if num_draws < 1:
            raise ConfigError(f"num_draws is {num_draws}: expected 1 or more")
        places: dict[str, list[int]] = {}
        for number, group in enumerate(sets):
            for name in np.unique(group).tolist():
                places.setdefault(name, []).append(number)
        strata: dict[tuple[int, ...], list[str]] = {}
        for name, of_group in places.items():
            strata.setdefault(tuple(of_group), []).append(name)
        names = [name for of_stratum in strata.values() for name in of_stratum]
        self._columns = {name: column for column, name in enumerate(names)}
        generator = np.random.default_rng(seed)
        drawn = [_counts(len(of), num_draws, generator) for of in strata.values()]
        self._counts = np.concatenate(drawn, axis=1) if drawn else np.zeros((num_draws, 0), int)

    def rows(self, group: Array) -> Iterator[Array]:
        """Yield the rows of each draw, in order; a row stands as often as its group was drawn.

        Args:
            group: [prompt], of the groups given before.

        Raises:
            DataError: A group is unknown.
        """
        try:
            columns = np.array([self._columns[name] for name in group.tolist()], int)
        except KeyError as error:
            raise DataError(f"group {error} is in none of the sets that are drawn from") from None
        every_row = np.arange(len(group))
        for counts in self._counts:
            yield np.repeat(every_row, counts[columns])

    def draws(self, statistics: Mapping[Key, Statistic], group: Array) -> dict[Key, Array]:
        """Return the values of some statistics in each draw, [draw]; NaN where there is none.

        Args:
            statistics: By any key; each sees the same rows.
            group: [prompt], of the groups given before.

        Raises:
            DataError: A group is unknown.
        """
        found: dict[Key, Array] = {key: np.full(len(self._counts), np.nan) for key in statistics}
        for draw, rows in enumerate(self.rows(group)):
            for key, statistic in statistics.items():
                value = statistic(rows)
                if value is not None:
                    found[key][draw] = value
        return found

    @staticmethod
    def interval(draws: Array, *, level: float = 0.95) -> tuple[float, float] | None:
        """Return the percentile interval of draws; None if fewer than half of them have a value.

        >>> GroupBootstrap.interval(np.arange(101.0), level=0.5)
        (25.0, 75.0)
        """
        known = draws[~np.isnan(draws)]
        if 2 * len(known) < len(draws) or not len(known):
            return None
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def _counts(num_groups: int, num_draws: int, generator: np.random.Generator) -> Array:
    """Return how often each group comes in each draw, [draw, group]."""
    drawn = generator.integers(num_groups, size=(num_draws, num_groups))
    drawn += np.arange(num_draws)[:, None] * num_groups
    counts = np.bincount(drawn.ravel(), minlength=num_draws * num_groups)
    return counts.reshape(num_draws, num_groups).astype(np.uint16)
