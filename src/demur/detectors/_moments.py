"""First and second moments of states by class: streamed, mergeable, float64."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array

ROWS_A_CHUNK = 4096


@dataclass
class Moments:
    """Sums over the prompts of each class, from which means and scatter follow."""

    counts: Array
    """[class]."""
    sums: Array
    """[class, feature]."""
    products: Array
    """Sum of outer products over all classes, [feature, feature]."""

    @classmethod
    def zero(cls, num_classes: int, num_features: int) -> Self:
        """Return the moments of no prompts."""
        return cls(
            np.zeros(num_classes),
            np.zeros((num_classes, num_features)),
            np.zeros((num_features, num_features)),
        )

    def update(self, states: Array, classes: Array) -> Self:
        """Add prompts, a chunk at a time, and return self.

        Args:
            states: [prompt, feature].
            classes: [prompt], whole numbers from 0.
        """
        for start in range(0, len(states), ROWS_A_CHUNK):
            chunk = states[start : start + ROWS_A_CHUNK].astype(np.float64)
            of_chunk = classes[start : start + ROWS_A_CHUNK]
            for number in range(len(self.counts)):
                rows = chunk[of_chunk == number]
                self.counts[number] += len(rows)
                self.sums[number] += rows.sum(0)
            self.products += chunk.T @ chunk
        return self

    def merge(self, other: "Moments") -> Self:
        """Add another set's moments and return self."""
        self.counts += other.counts
        self.sums += other.sums
        self.products += other.products
        return self

    @property
    def means(self) -> Array:
        """The class means [class, feature].

        Raises:
            DataError: A class has no prompts.
        """
        if not self.counts.all():
            raise DataError(f"a class has no prompts: the counts are {self.counts.tolist()}")
        means: Array = self.sums / self.counts[:, None]
        return means

    @property
    def within(self) -> Array:
        """The sum of squared deviations from the class means [feature, feature]."""
        within: Array = self.products - (self.means.T * self.counts) @ self.means
        return within
