"""Times arms in rounds: each runs every arm once, in random order, so that drift hits all alike."""

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from demur.core.readings import Array

Seconds = dict[str, Array]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
"""Processor: this process's time alone, for machines that are not quiet."""


def alternate(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seed: int = 0,
    warm_ups: int = 1,
    clock: Clock = time.perf_counter,
    most_s: float = math.inf,
) -> Seconds:
    """Return the seconds [round] that each arm took; without `most_s`, all have as many rounds.

    Args:
        arms: What to call, by name.
        rounds: How often, each time in another order.
        seed: Of the orders.
        warm_ups: Calls of each arm beforehand.
        clock: Gives seconds.
        most_s: An arm that has taken so long sits the other rounds out, after two at least.
    """
    for arm in arms.values():
        for _ in range(warm_ups):
            arm()
    generator = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name in generator.permutation(list(arms)):
            if len(seconds[name]) >= 2 and sum(seconds[name]) > most_s:
                continue
            started = clock()
            arms[name]()
            seconds[name].append(clock() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def median_interval(values: Array, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median."""
    generator = np.random.default_rng(seed)
    draws = generator.choice(values, size=(4000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def summary(values: Array) -> dict[str, object]:
    """Return the median and its interval, for a result file."""
    return {"median": float(np.median(values)), "interval": median_interval(values)}
