"""Suites, and scores of them, made up."""

from collections.abc import Mapping

import numpy as np

from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat
from demur.workflows.evaluate_results import ModelResult
from demur.workflows.evaluate_scores import Contender, FrozenThreshold
from demur.workflows.suites import EvaluationSet, Suite

SECRET = "a text that no result may hold"
THRESHOLD = 1.0
MODEL = ModelResult("tiny", {"dtype": "float32"}, "cpu")


def evaluation_set(
    name: str, num_unsafe: int, num_safe: int, *, pool: tuple[str, ...] = (), cluster: str = ""
) -> EvaluationSet:
    labels = ["unsafe"] * num_unsafe + ["safe"] * num_safe
    examples = tuple(
        Example(f"{name}-{row}", Chat.from_text(f"{SECRET} {row}"), label, source=name)  # type: ignore[arg-type]
        for row, label in enumerate(labels)
    )
    return EvaluationSet(name, "test", examples, pool=pool, cluster=cluster)


SUITE = Suite(
    "mine",
    (
        evaluation_set("mixed", 40, 60),
        evaluation_set("harm", 30, 0, pool=("mixed", "plain")),
        evaluation_set("plain", 0, 50),
    ),
)


def scores_of(suite: Suite, *, gain: float = 2.0, seed: int = 0) -> dict[str, Array]:
    """Return scores that are higher for unsafe prompts."""
    generator = np.random.default_rng(seed)
    return {
        of.name: generator.standard_normal(len(of.examples))
        + gain * np.array([example.label == "unsafe" for example in of.examples])
        for of in suite.sets
    }


def contender(scores: Mapping[str, Array], *, name: str = "linear") -> Contender:
    thresholds = (FrozenThreshold(THRESHOLD, 0.1), FrozenThreshold(2.0, 0.01))
    return Contender(name, MODEL.name, scores, thresholds, platt=(2.0, -2.0), version="v1")
