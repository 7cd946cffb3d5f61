"""The report of a training: one small page of curves and numbers, which needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demur.core.training import Outcome, Trainer

REPORT = "report.html"
TEMPLATE = "training_report.html.jinja"
WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 412, 12, 172
"""Where a chart's axes end."""
MAX_POINTS = 400
"""Of a line; of more steps some are left out, so that the page stays small."""


@dataclass(frozen=True)
class Chart:
    """One curve over the steps, as points of a drawing."""

    title: str
    raw: str
    mean: str
    low: str
    high: str
    first: str
    last: str


def render(trainer: Trainer, outcome: Outcome, trained_on: Mapping[str, object]) -> bytes:
    """Return the page.

    Args:
        trainer: With its hyper-parameters.
        outcome: With a curve.
        trained_on: Counts of the examples, as `describe_set` gives them.
    """
    window = max(1, len(outcome.curve) // 20)
    curves: dict[str, Sequence[float | None]] = {"loss": outcome.curve, **outcome.curves}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        trainer=type(trainer).__module__.rpartition(".")[2],
        model=outcome.model_id.name,
        steps=len(outcome.curve),
        prompts=trained_on["prompts"],
        window=window,
        charts=[chart(name, values, window=window) for name, values in sorted(curves.items())],
        tables=[
            ("Measured", [(name, f"{value:.4g}") for name, value in outcome.metrics.items()]),
            ("Hyper-parameters", list(trainer.hyper_parameters().items())),
            ("Examples", _examples(trained_on)),
        ],
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
    )
    return page.encode()


def _examples(trained_on: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, f"{of['unsafe']} unsafe, {of['safe']} safe")
        for name, of in sorted(trained_on["sources"].items())
    ]


def chart(title: str, values: Sequence[float | None], *, window: int) -> Chart:
    """Return a curve as a drawing.

    Args:
        title: What it is of.
        values: Of each step; None where a step has none.
        window: Over how many of the last values the thick line is the mean.
    """
    known = [(step, value) for step, value in enumerate(values) if value is not None]
    numbers = [value for _, value in known]
    low, high = min(numbers), max(numbers)
    means = [
        sum(numbers[max(0, end - window) : end]) / min(window, end)
        for end in range(1, len(numbers) + 1)
    ]
    every = -(-len(known) // MAX_POINTS)

    def points(of: Sequence[float]) -> str:
        return " ".join(
            _point(step, value, num_steps=len(values), low=low, high=high)
            for (step, _), value in list(zip(known, of, strict=True))[::every]
        )

    ends = (f"{number:.3g}" for number in (low, high, numbers[0], means[-1]))
    return Chart(title, points(numbers), points(means), *ends)


def _point(step: int, value: float, *, num_steps: int, low: float, high: float) -> str:
    across = step / max(1, num_steps - 1)
    up = (value - low) / (high - low) if high > low else 0.5
    return f"{LEFT + across * (RIGHT - LEFT):.1f},{BOTTOM - up * (BOTTOM - TOP):.1f}"
