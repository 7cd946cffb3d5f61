"""Measures detection: the shipped and a research detector, each beside rivals on the same rows.

`shipped` is the packaged artifact; `research` is the same method fitted on rows of all sets,
non-commercial ones included. Each is compared with rivals that were fitted, chosen and calibrated
on the same rows: TF-IDF, a MiniLM sentence embedding, last-layer LPM, MLPM and logistic regression
on one layer; the controls are the prompt's length, shuffled scores and flagging everything. Every
threshold is the one that calibration gives for 3.5% false positives on validation prompts. One
table uses another: the one at which a detector flags 1% of the utility sets, for a comparison at
equal false positives.

    DEMUR_DATA=FOLDER python -m benchmarks.detection [--json]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.build_pretrained import FPR, OUT, fit_selection, show_progress
from benchmarks.contenders import Fitted, fit, rivals
from benchmarks.detection_goals import goals
from benchmarks.detection_report import report
from benchmarks.machine import describe_machine
from benchmarks.realised import realised_recall
from benchmarks.rows import Selection, SetCapturer, research_rows, shipped_rows, test_suite
from demur.core import artifacts
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.workflows.evaluate import evaluate
from demur.workflows.evaluate_results import ModelResult
from demur.workflows.suites import Suite

RESULTS = Path(__file__).parent / "results"
NUM_DRAWS = 1000
"""Of the bootstrap."""
REALISED = 0.01
"""The share of the utility sets that all flag where they are compared at equal false positives."""


def compare(
    ours: Fitted, selection: Selection, suite: Suite, capture: SetCapturer, *, model: ModelResult
) -> dict[str, Any]:
    """Return what a detector and its rivals on the same rows make of the test sets."""
    others = [
        fit(f"{selection.name} {name}", settings, selection, capture)
        for name, settings in rivals(capture.num_blocks).items()
    ]
    contenders = [of.contender(suite, capture, model=model.name) for of in (ours, *others)]
    evaluation, _ = evaluate(suite, [model], contenders, num_draws=NUM_DRAWS)
    return {
        "evaluation": asdict(evaluation),
        "realised": realised_recall(suite, contenders, fpr=REALISED, num_draws=NUM_DRAWS),
        "goals": {of.name: goals(suite, of) for of in contenders},
        "rows": {"train": len(selection.train), "val": len(selection.val)},
    }


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    data, suite = DemurData(), test_suite()
    engine = TransformersEngine.load("embedded", dtype="bfloat16")
    capture = SetCapturer(engine, report=show_progress)
    model = ModelResult(engine.model_id.name, engine.model_id.as_dict(), "cpu")
    packaged = artifacts.read(OUT)
    shipped, research = shipped_rows(data), research_rows(data)
    fitted = fit_selection(engine, capture, research)
    ours = {
        "shipped": Fitted("shipped", artifacts.restore(packaged), packaged.calibration),
        "research": Fitted("research", fitted.detector, fitted.calibration),
    }
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        "fpr": FPR,
        "shipped_sha256": packaged.sha256,
        "comparisons": {
            selection.name: compare(ours[selection.name], selection, suite, capture, model=model)
            for selection in (shipped, research)
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "detection.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "detection.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()
