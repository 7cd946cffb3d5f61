"""What an adapter of upper blocks costs in strength: the price of going on from what was read.

Blocks below an adapter's lowest one compute what they computed before, so that a flagged prompt is
read again from there on only (`benchmarks.rerouting` measures the time). Here the same training, on
the prompts and replies that ship, adapts all blocks or those from some depth on; each adapter is
always on, for prompts that nothing was trained on. What was trained and drawn is kept in the user's
cache, so that a run which was stopped goes on.

    DEMUR_DATA=FOLDER python -m benchmarks.adapter_layers --model M [--share 1] [--steps 120]
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from benchmarks.adapter_layers_report import report
from benchmarks.arms import BASE, Arms, always_on_rows, held_out_cases
from benchmarks.artifacts import LEARNING_RATE, trained_folder, training_metrics
from benchmarks.one_model import run
from demur.core.readings import Array
from demur.datasets import replies
from demur.datasets.demur_data import DemurData
from demur.modeling.gguf import cache_folder
from demur.studies._arms import paired_change
from demur.studies._cases import Cases, Role
from demur.studies._outcomes import Outcomes
from demur.trainers.sft import SftTrainer
from demur.workflows.fit import describe_set

MAX_TOKENS = 48
DEPTHS = (0.0, 0.4, 0.5, 0.75)
"""Shares of the blocks that are left alone, from the first one on; none comes first."""


def measure(model: str, detector: str, *, share: float, steps: int) -> dict[str, Any]:
    """Measure one model.

    Args:
        model: As `--model` takes it.
        detector: A gate, which `benchmarks.arms` asks for; nothing is gated here.
        share: Of the prompts of `benchmarks.arms`, over 0.
        steps: Of each training.
    """
    started = time.perf_counter()
    arms = Arms(
        model,
        held_out_cases(DemurData(), share=share),
        detector=detector,
        max_tokens=MAX_TOKENS,
    )
    num_blocks = len(arms.engine.loaded.parts.blocks)
    root = cache_folder() / "benchmarks" / "adapter_layers" / arms.engine.model_id.name
    learnt = replies.load("train")
    folders: dict[str, Path] = {}
    for first in (round(depth * num_blocks) for depth in DEPTHS):
        name = f"{first} to {num_blocks - 1}"
        trainer = SftTrainer(
            layers=range(first, num_blocks), steps=steps, learning_rate=LEARNING_RATE
        )
        folders[name] = trained_folder(trainer, learnt, model, root / f"from-{first}")
    outcomes = {name: arms.under(f"adapter:{folder}") for name, folder in folders.items()}
    return {
        "model": arms.engine.model_id.as_dict(),
        "max_tokens": MAX_TOKENS,
        "share": share,
        "steps": steps,
        "num_blocks": num_blocks,
        "trained_on": describe_set(learnt),
        "training": {name: training_metrics(folder) for name, folder in folders.items()},
        "arms": strengths(arms.base(), outcomes, arms.cases),
        "seconds": time.perf_counter() - started,
    }


def strengths(
    base: Outcomes, outcomes: Mapping[str, Outcomes], cases: Cases
) -> list[dict[str, Any]]:
    """Return a row an arm and role, with changes to the model and to the adapter of all blocks.

    Args:
        base: Of the model by itself.
        outcomes: By adapter, that of all blocks first.
        cases: The prompts.
    """
    whole = next(iter(outcomes.values()))
    of_arm = {BASE: base, **outcomes}
    found: list[dict[str, Any]] = []
    for row in always_on_rows(base, outcomes, cases):
        rows = cases.rows(cast(Role, row["role"]))
        of = of_arm[str(row["arm"])]
        found.append({**row, "to_all": _to_all(of, whole, rows, cases.group[rows])})
    return found


def _to_all(
    of: Outcomes, whole: Outcomes, rows: Array, group: Array
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return how much more is refused than under the adapter of all blocks, by labeller."""
    return {
        labeller: paired_change(
            getattr(of, labeller)[rows] == "refused",
            getattr(whole, labeller)[rows] == "refused",
            group,
        )
        for labeller in ("outcome", "second")
    }


def main() -> None:
    """Measure, write the results, and print them."""
    run(
        "adapter_layers",
        __doc__,
        measure,
        report,
        {
            "share": (1.0, "of the prompts; 1 for 150 each"),
            "steps": (120, "of each training"),
        },
    )


if __name__ == "__main__":
    main()
