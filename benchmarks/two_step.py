"""Two-step answering: a safe adapter behind a detector, against the same one for every prompt.

    DEMUR_DATA=FOLDER python -m benchmarks.two_step [--model M] [--detector D] [--share 1]
        [--fpr 0.05] [--methods sft,dpo,derta] [--trained-on plain,wrapped] [--max-tokens 48]

Each method trains an adapter on plain unsafe prompts and another on the same prompts inside
framings, with the same rows and steps. Each is tested on prompts like both, on framings and attacks
that it has not seen, in other languages, and on safe prompts, in four arms: the model by itself
(base), the adapter for every prompt (always safe), for those that the detector flags (routed), and
for the unsafe ones (oracle-routed). The last two are put together of the first two, prompt by
prompt. Whatever was trained, drawn and read is kept in the user's cache, so that a run which was
stopped goes on, and one with more methods or prompts begins where the last one ended.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174v1.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import Arms, tell
from benchmarks.artifacts import LEARNING_RATE, trained_folder, training_metrics
from benchmarks.gate import gate_of
from benchmarks.machine import describe_machine
from benchmarks.results_files import RESULTS, keep
from benchmarks.two_step_claims import BASE, judged_by_both, rows_of
from benchmarks.two_step_cost import cost_of, timings_of
from benchmarks.two_step_report import report
from benchmarks.two_step_rows import Style, cells_of, to_train
from benchmarks.two_step_utility import UtilitySets, compared, margins_of
from demur.core import registry
from demur.core.types import Dtype
from demur.datasets.demur_data import DemurData
from demur.modeling.gguf import cache_folder
from demur.workflows.fit import describe_set

METHODS = ("sft", "dpo", "derta")
STYLES: tuple[Style, ...] = ("plain", "wrapped")
MAX_REPLY_TOKENS = 96
"""Of a reply that is learnt."""


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    model: str = "embedded"
    """As `--model` takes it."""
    detector: str | None = None
    """A folder, or a packaged one; None: see `benchmarks.gate.gate_of`."""
    fpr: float | None = None
    """Of the detector's threshold; None takes its own."""
    share: float = 1.0
    """Of the prompts and questions, over 0."""
    methods: Sequence[str] = METHODS
    """Trainers of adapters."""
    styles: Sequence[Style] = STYLES
    """Of the rows that they learn from."""
    steps: int = 80
    """Of each training."""
    max_tokens: int = 48
    """Of a reply."""
    num_timed: int = 20
    """Prompts of each sort that are answered one by one."""
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk."""

    method: str
    style: Style
    folder: Path

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.method}, {self.style}"

    @property
    def line(self) -> str:
        """What makes a responder of it."""
        return f"adapter:{self.folder}"


def measure(plan: Plan) -> dict[str, Any]:
    """Train what is missing, and compare all arms."""
    started = time.perf_counter()
    data = DemurData()
    adapters, trained_on = trained(plan, data)
    detector = gate_of(plan.model, plan.detector)
    cells = cells_of(data, share=plan.share)
    arms = Arms(
        plan.model,
        cells.cases,
        detector=detector,
        max_tokens=plan.max_tokens,
        dtype=plan.dtype,
        fpr=plan.fpr,
    )
    flagged = margins_of(arms, arms.chats)[:, 0] >= 0
    base = arms.base()
    sets = UtilitySets.read(arms, cells, data, share=plan.share)
    utility_base = sets.measured(None)
    found: dict[str, Any] = {}
    for adapter in adapters:
        tell(f"{adapter.name}: replies")
        always = arms.under(adapter.line)
        tell(f"{adapter.name}: utility")
        utility = compared(sets, utility_base, sets.measured(adapter.line))
        found[adapter.name] = {
            **judged_by_both(base, always, flagged, cells, adapter.style),
            "trained_on": adapter.style,
            "training": training_metrics(adapter.folder),
            "utility": utility,
        }
    first = adapters[0]
    timings = timings_of(
        arms, first.line, flagged, arms.base_replies(), arms.replies(first.line),
        number=plan.num_timed,
    )  # fmt: skip
    return {
        "model": arms.engine.model_id.as_dict(),
        "detector": Path(detector).name,
        "fpr": plan.fpr,
        "share": plan.share,
        "steps": plan.steps,
        "max_tokens": plan.max_tokens,
        "rows": trained_on,
        "kinds": dict(cells.kinds),
        "base": rows_of(BASE, base, base, cells, None),
        "adapters": found,
        "cost": {"adapter": first.name, **cost_of(timings)},
        "seconds": time.perf_counter() - started,
    }


def trained(plan: Plan, data: DemurData) -> tuple[list[Adapter], Mapping[str, Any]]:
    """Return the adapters, trained unless they lie there, and what rows each style has."""
    root = cache_folder() / "benchmarks" / "two_step" / Path(plan.model).stem
    rows = {style: to_train(data, style) for style in plan.styles}
    shared: dict[str, Any] = {
        "steps": plan.steps,
        "max_reply_tokens": MAX_REPLY_TOKENS,
        "learning_rate": LEARNING_RATE,
    }
    adapters = [
        Adapter(
            method,
            style,
            trained_folder(
                registry.load("trainers", method)(**shared),
                rows[style],
                plan.model,
                root / f"{method}-{style}",
                dtype=plan.dtype,
            ),
        )
        for method in plan.methods
        for style in plan.styles
    ]
    return adapters, {style: describe_set(of) for style, of in rows.items()}


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--detector", help="the gate; default: packaged, or fitted for the model")
    parser.add_argument("--fpr", type=float, help="of the gate's threshold; default: its own")
    parser.add_argument("--share", type=float, default=1.0, help="of prompts, for a trial")
    parser.add_argument("--methods", default=",".join(METHODS), help="trainers, with commas")
    parser.add_argument("--trained-on", default=",".join(STYLES), help="plain, wrapped or both")
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a reply")
    parser.add_argument("--timed", type=int, default=20, help="prompts of a sort that are timed")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the report")
    options = parser.parse_args()
    styles = options.trained_on.split(",")
    plan = Plan(
        model=options.model,
        detector=options.detector,
        fpr=options.fpr,
        share=options.share,
        methods=options.methods.split(","),
        styles=[style for style in STYLES if style in styles],
        steps=options.steps,
        max_tokens=options.max_tokens,
        num_timed=options.timed,
        dtype=options.dtype,
    )
    if len(plan.styles) < len(styles):
        parser.error(f"--trained-on is {options.trained_on!r}: expected some of {STYLES}")
    results = {"machine": describe_machine(), **measure(plan)}
    keep("two_step", results, report(results), folder=options.out, prints_json=options.json)


if __name__ == "__main__":
    main()
