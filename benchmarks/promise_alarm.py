"""The drift alarm: false alarms on traffic like the calibration set, power on other traffic."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.promise_sources import Source, all_but, pooled
from demur.core.artifacts import Calibration
from demur.core.readings import Array
from demur.guard.calibration import recalibrate
from demur.guard.drift import DriftAlarm

ALPHA = 0.01
UNSAFE_SHARE = 0.01
"""Of the alarm that watches flags alone: this much of the traffic may be unsafe."""
LENGTH = 1000
"""Prompts of a stream."""
NUM_PLANTED = 200
NUM_STREAMS = 20
"""Of each source that was left out."""
NUM_HALVES = 200
"""Times that all groups are halved at random."""
PLANTED_FPR = 0.01
NUM_CALIBRATED = 1000
SHIFTS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda scores: scores,
    "up by a quarter of the spread": lambda scores: scores + 0.25,
    "up by half the spread": lambda scores: scores + 0.5,
    "up by the spread": lambda scores: scores + 1.0,
    "down by half the spread": lambda scores: scores - 0.5,
    "half as wide again": lambda scores: scores * 1.5,
}


def calibrated(source: Source, fpr: float) -> Calibration:
    """Return the calibration on benign prompts."""
    return recalibrate(
        Calibration((), 1.0, 0.0, ""),
        source.scores,
        source.group,
        rates=(fpr,),
        calibrated_on="",
        default_fpr=fpr,
    )


def raised_after(calibration: Calibration, scores: Array, unsafe_share: float) -> int | None:
    """Return after how many scores the alarm is raised; None if it is not."""
    alarm = DriftAlarm(calibration, alpha=ALPHA, unsafe_share=unsafe_share)
    return next((number for number, score in enumerate(scores, 1) if alarm.update(score)), None)


def summary(calibrations: list[Calibration], streams: list[Array]) -> dict[str, Any]:
    """Return how many streams raise the alarm, and how soon, for each sort of alarm."""
    found: dict[str, Any] = {}
    for name, unsafe_share in (("scores and flags", 0.0), ("flags", UNSAFE_SHARE)):
        ends = [
            raised_after(calibration, stream, unsafe_share)
            for calibration, stream in zip(calibrations, streams, strict=True)
        ]
        raised = [end for end in ends if end is not None]
        found[name] = {
            "raised": len(raised) / len(ends),
            "median_prompts": float(np.median(raised)) if raised else None,
        }
    return found


def planted_alarms() -> dict[str, Any]:
    """Return what alarms do on normal scores, by how they shift; each stream has a calibration."""
    generator = np.random.default_rng(0)
    draws = [generator.standard_normal(NUM_CALIBRATED + LENGTH) for _ in range(NUM_PLANTED)]
    groups = np.arange(NUM_CALIBRATED)
    calibrations = [
        calibrated(Source(scores[:NUM_CALIBRATED], groups), PLANTED_FPR) for scores in draws
    ]
    return {
        "alpha": ALPHA,
        "streams": NUM_PLANTED,
        "length": LENGTH,
        "shifts": {
            name: summary(calibrations, [shift(scores[NUM_CALIBRATED:]) for scores in draws])
            for name, shift in SHIFTS.items()
        },
    }


def alarms_on_sources(sources: Mapping[str, Source], *, fpr: float) -> dict[str, Any]:
    """Return what alarms do that are set up on all sources but one and watch that one.

    False alarms: set up on one half of all groups, at random, they watch the other.
    """
    generator = np.random.default_rng(0)
    everything = pooled(sources).highest
    first = np.arange(len(everything) // 2)
    shuffled = [generator.permutation(everything) for _ in range(NUM_HALVES)]
    shifted = {}
    for name, source in sources.items():
        streams = [generator.permutation(source.highest)[:LENGTH] for _ in range(NUM_STREAMS)]
        calibration = calibrated(all_but(sources, name), fpr)
        shifted[name] = {
            "length": len(streams[0]),
            **summary([calibration] * NUM_STREAMS, streams),
        }
    return {
        "alpha": ALPHA,
        "streams": NUM_STREAMS,
        "halves": NUM_HALVES,
        "false_alarms": summary(
            [calibrated(Source(scores[first], first), fpr) for scores in shuffled],
            [scores[len(first) :][:LENGTH] for scores in shuffled],
        ),
        "left_out": shifted,
    }
