"""Measures whether thresholds keep what they promise, and whether the drift alarm says when not.

Planted scores: how often the true rate exceeds the bound of a threshold, over 2,000 draws of a
calibration set; and the drift alarm on streams of planted scores. Needs no model.

Benign sources, by the packaged detector: each is left out in turn. Thresholds are calibrated on all
others and tested on it; then on prompts of its own; and the drift alarm, set up on all others,
watches it. The prompts are those of the test splits: the detector was fitted on none of them.

    python -m benchmarks.promise --planted [--json]
    DEMUR_DATA=FOLDER python -m benchmarks.promise [--sources NAME,NAME] [--json]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.build_pretrained import OUT, show_progress
from benchmarks.machine import describe_machine
from benchmarks.promise_alarm import alarms_on_sources, planted_alarms
from benchmarks.promise_planted import planted_thresholds
from benchmarks.promise_report import report
from benchmarks.promise_sources import Source, leave_one_out, own_prompts
from benchmarks.rows import SetCapturer, test_suite
from demur.core import artifacts
from demur.core.readings import Array
from demur.engines.transformers import TransformersEngine
from demur.workflows.evaluate_measures import groups_of

RESULTS = Path(__file__).parent / "results"
FPR = 0.01


def planted() -> dict[str, Any]:
    """Return what thresholds and alarms do on planted scores."""
    return {
        "machine": describe_machine(),
        "thresholds": planted_thresholds(),
        "alarms": planted_alarms(),
    }


def on_sources(sources: Mapping[str, Source], unsafe: Array, *, fpr: float = FPR) -> dict[str, Any]:
    """Return what thresholds and the alarm do on each source, calibrated on all others.

    Args:
        sources: Scores and groups of the benign prompts of each source, at least two.
        unsafe: Scores of unsafe prompts, for what a threshold costs, [prompt].
        fpr: The rate that is promised.
    """
    return {
        "machine": describe_machine(),
        "fpr": fpr,
        "num_unsafe": len(unsafe),
        "left_out": leave_one_out(sources, unsafe, fpr=fpr),
        "own_prompts": own_prompts(sources, unsafe, fpr=fpr),
        "alarms": alarms_on_sources(sources, fpr=fpr),
    }


def packaged_scores(names: Sequence[str]) -> tuple[dict[str, Source], Array]:
    """Return the packaged detector's scores of benign prompts by source, and of unsafe ones.

    Args:
        names: Of the sets to take; none takes all.
    """
    detector = artifacts.restore(artifacts.read(OUT))
    engine = TransformersEngine.load("embedded", dtype="bfloat16")
    capture = SetCapturer(engine, report=show_progress)
    sources: dict[str, Source] = {}
    unsafe: list[Array] = [np.zeros(0)]
    for of in test_suite().sets:
        if names and of.name not in names:
            continue
        scores = detector.decision_function(capture.read(of.examples, detector.reads))
        is_safe = np.array([example.label == "safe" for example in of.examples])
        unsafe.append(scores[~is_safe])
        if is_safe.any():
            sources[of.name] = Source(scores[is_safe], groups_of(of.examples)[is_safe])
    return sources, np.concatenate(unsafe)


def main() -> None:
    """Run the benchmark and write its results; `--planted` leaves those of sources as they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planted", action="store_true", help="planted scores only")
    parser.add_argument("--sources", default="", help="sets with commas; all where not given")
    parser.add_argument("--fpr", type=float, default=FPR, help="the rate to promise on sources")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    path = options.out / "promise.json"
    results = json.loads(path.read_bytes()) if path.exists() else {}
    results["planted"] = planted()
    if not options.planted:
        sources, unsafe = packaged_scores(options.sources.split(",") if options.sources else ())
        results["sources"] = on_sources(sources, unsafe, fpr=options.fpr)
    options.out.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "promise.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()
