"""First and second moments of states by class: streamed, mergeable, float64.

What follows from them is the Gaussian discriminant with a shared covariance.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import DataError
from demur.core.protocols import Stream
from demur.core.readings import Array, Readings

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

    def update(self, states: Array, classes: Array, *, weights: Array | None = None) -> Self:
        """Add prompts, a chunk at a time, and return self.

        Args:
            states: [prompt, feature].
            classes: [prompt], whole numbers from 0.
            weights: [prompt], for how many prompts each counts; None is one.
        """
        for start in range(0, len(states), ROWS_A_CHUNK):
            rows = slice(start, start + ROWS_A_CHUNK)
            chunk = states[rows].astype(np.float64)
            shares = np.ones(len(chunk)) if weights is None else weights[rows]
            weighted = chunk if weights is None else chunk * shares[:, None]
            for number in range(len(self.counts)):
                of_class = classes[rows] == number
                self.counts[number] += shares[of_class].sum()
                self.sums[number] += weighted[of_class].sum(0)
            self.products += weighted.T @ chunk
        return self

    def merge(self, other: "Moments") -> Self:
        """Add another set's moments and return self."""
        self.counts += other.counts
        self.sums += other.sums
        self.products += other.products
        return self

    def without(self, other: "Moments") -> "Moments":
        """Return the moments that are left when those of a part are taken away."""
        return Moments(
            self.counts - other.counts, self.sums - other.sums, self.products - other.products
        )

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


def total(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all parts together; there is at least one."""
    first, *others = parts
    sum_of = Moments.zero(*first.sums.shape).merge(first)
    for part in others:
        sum_of.merge(part)
    return sum_of


def stream_moments(
    stream: Stream,
    *,
    features: Callable[[Readings], Array],
    classes: Array,
    part_of: Array,
    num_classes: int,
) -> dict[str, Moments]:
    """Return the moments of the prompts of each part.

    Args:
        stream: Readings with their rows.
        features: Returns the states [prompt, feature] of some readings.
        classes: [prompt], whole numbers from 0; a negative one leaves its prompt out.
        part_of: [prompt], the name of the part that a prompt belongs to.
        num_classes: How many there are.

    Raises:
        DataError: The stream does not hold each prompt once.
    """
    parts: dict[str, Moments] = {}
    for rows, readings in all_of(stream, len(classes)):
        states = features(readings)
        for name in np.unique(part_of[rows]).tolist():
            chosen = (part_of[rows] == name) & (classes[rows] >= 0)
            moments = parts.setdefault(str(name), Moments.zero(num_classes, states.shape[1]))
            moments.update(states[chosen], classes[rows][chosen])
    return parts


def all_of(stream: Stream, num_prompts: int) -> Stream:
    """Yield the parts of a stream that has to hold each of a number of prompts once.

    Raises:
        DataError: It does not.
    """
    num_seen: Array = np.zeros(num_prompts, int)
    for rows, readings in stream:
        if len(rows) != len(readings) or (len(rows) and rows.max() >= num_prompts):
            break
        num_seen[rows] += 1
        yield rows, readings
    if not (num_seen == 1).all() or (num_prompts and not num_seen.any()):
        raise DataError(
            f"the readings hold {sum(len(part) for _, part in stream)} prompts, the targets "
            f"{num_prompts}"
        )


def discriminant(moments: Moments) -> tuple[Array, float]:
    """Return the weights [feature] and the bias of the difference of log-posteriors.

    Args:
        moments: Of two classes, safe first.

    Raises:
        DataError: A class is empty, or all states of each class are alike.
    """
    safe, unsafe = moments.means
    weights = solve_precision(moments, (unsafe - safe)[:, None])[:, 0]
    return weights, float(-0.5 * (safe + unsafe) @ weights)


def log_posteriors(moments: Moments) -> tuple[Array, Array]:
    """Return the weights [class, feature] and biases [class] of log-posteriors, but for a constant.

    Raises:
        DataError: A class is empty, or all states of each class are alike.
    """
    means = moments.means
    weights = np.ascontiguousarray(solve_precision(moments, means.T).T)
    return weights, -0.5 * np.einsum("cf,cf->c", means, weights)


def solve_precision(moments: Moments, vectors: Array) -> Array:
    """Return P times vectors [feature, vector], with P = d [(n - 1) S + tr(S) I]^-1.

    Raises:
        DataError: A class is empty, or all states of each class are alike.
    """
    num_features, num_prompts = moments.sums.shape[1], moments.counts.sum()
    within = moments.within
    spread, size = np.trace(within), np.trace(moments.products)
    if not spread > 1e-12 * size:  # less than that is what rounding leaves of equal states
        raise DataError("all states of a class are alike: there is no spread to learn from")
    within[np.diag_indices_from(within)] += spread / (num_prompts - 1)
    factor = np.linalg.cholesky(within)
    solved: Array = num_features * np.linalg.solve(factor.T, np.linalg.solve(factor, vectors))
    return solved
