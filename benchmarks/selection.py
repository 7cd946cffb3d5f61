"""Chooses read-out, layers and penalty of the detectors by holding out whole sources.

The rows are those that the shipped detector is fitted on; the research detector takes its choice.
Sources are parted into folds; each setting is fitted on the sources of all other folds and judged
on those left out, source by source: against the prompts of the other label in the same source, or,
if it has only one, in the other sources left out. The setting of the highest mean AUROC over
sources is chosen. The test sets have no say; what each setting makes of them is shown beside it,
with the gap between the chosen setting and the best in hindsight.

    DEMUR_DATA=FOLDER python -m benchmarks.selection [--json]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.build_pretrained import show_progress
from benchmarks.machine import describe_machine
from benchmarks.rows import Selection, SetCapturer, shipped_rows, test_suite
from demur.core.examples import targets_of
from demur.core.linear import LinearDetector
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, spread_layers
from demur.datasets.demur_data import DemurData
from demur.detectors.linear import Linear
from demur.detectors.linear_ensemble import LinearEnsemble
from demur.engines.transformers import TransformersEngine
from demur.metrics.auroc import auroc
from demur.workflows.evaluate_measures import comparisons
from demur.workflows.evaluate_scores import Contender
from demur.workflows.suites import Suite

RESULTS = Path(__file__).parent / "results"
NUM_FOLDS = 4
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Values of `c` for several layers joined."""
SINGLE_PENALTIES = (1e-3, 1e-2)
"""Values of `c` for one layer."""
SHARES = (0.0, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
"""Of the logistic regression in ensembles; 0 leaves the prototypes of the last layer."""


@dataclass(frozen=True)
class Setting:
    """A detector to choose or not."""

    family: str
    """The choice is made within a family."""
    name: str
    detector: LinearDetector


def settings(num_blocks: int) -> Iterator[Setting]:
    """Yield all settings that are tried."""
    for layer in range(4, num_blocks, 2):
        for c in SINGLE_PENALTIES:
            detector = Linear((CaptureSpec((layer,)),), c=c)
            yield Setting("one layer", f"layer {layer}, last token, C={c:g}", detector)
    layers = spread_layers(num_blocks, start=1 / 3, count=10)
    last = CaptureSpec(layers)
    mean = CaptureSpec(layers, "user", normalise="rms", pool="mean")
    for name, reads in (
        ("last token", (last,)),
        ("mean of the user's tokens", (mean,)),
        ("last token and mean", (last, mean)),
    ):
        for c in PENALTIES:
            yield Setting("several layers", f"10 layers, {name}, C={c:g}", Linear(reads, c=c))
    for share in SHARES:
        for reads, name in (((last,), "last token"), ((last, mean), "last token and mean")):
            words = f"10 layers, {name}, C=0.001, {share:.2f} of an ensemble with prototypes"
            yield Setting("several layers", words, LinearEnsemble(reads, logistic_share=share))


def taken(targets: Targets, rows: Array) -> Targets:
    """Return the targets of some prompts."""
    return Targets(targets.unsafe[rows], targets.group[rows], targets.source[rows])


def mean_of_sources(scores: Array, targets: Targets) -> float:
    """Return the mean over sources of the AUROC on each."""
    values = []
    for source in np.unique(targets.source):
        own = targets.source == source
        labels = np.unique(targets.unsafe[own])
        rows = own if len(labels) == 2 else own | (targets.unsafe != labels[0])
        value = auroc(scores[rows], targets.unsafe[rows])
        if value is not None:
            values.append(value)
    return float(np.mean(values))


def held_out(detector: LinearDetector, readings: Readings, targets: Targets) -> float:
    """Return the mean AUROC on sources that the detector was not fitted on."""
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
    found = []
    for rest, out in folds.split(targets.unsafe, targets.unsafe, targets.source):
        detector.fit(readings.take(rest), taken(targets, rest), seed=0)
        scores = detector.decision_function(readings.take(out))
        found.append(mean_of_sources(scores, taken(targets, out)))
    return float(np.mean(found))


def outside(detector: LinearDetector, suite: Suite, capture: SetCapturer) -> float:
    """Return the mean AUROC over the English test sets of other sources, each cluster once."""
    scores = {
        of.name: detector.decision_function(capture.read(of.examples, detector.reads))
        for of in suite.sets
    }
    contender = Contender("", None, scores)
    clusters: dict[str, list[float]] = {}
    for comparison in comparisons(suite)[0]:
        if (comparison.split, comparison.languages) == ("test_ood", "english"):
            value = auroc(comparison.scores(contender), comparison.unsafe)
            if value is not None:
                clusters.setdefault(comparison.cluster, []).append(value)
    return float(np.mean([np.mean(values) for values in clusters.values()]))


def select(selection: Selection, suite: Suite, capture: SetCapturer) -> dict[str, Any]:
    """Return what each setting reaches on sources left out and, in hindsight, on the test sets."""
    targets = targets_of(selection.train)
    families: dict[str, list[dict[str, Any]]] = {}
    for setting in settings(capture.num_blocks):
        print(f"\r{setting.name:60}", end="", file=sys.stderr, flush=True)
        readings = capture.read(selection.train, setting.detector.reads)
        reached = held_out(setting.detector, readings, targets)
        setting.detector.fit(readings, targets, seed=0)
        row = {
            "setting": setting.name,
            "held_out": reached,
            "test_ood": outside(setting.detector, suite, capture),
        }
        families.setdefault(setting.family, []).append(row)
    return {name: {"tried": rows, **_chosen(rows)} for name, rows in families.items()}


def _chosen(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    chosen, best = (max(rows, key=lambda row: float(row[by])) for by in ("held_out", "test_ood"))
    return {
        "chosen": chosen["setting"],
        "best_in_hindsight": best["setting"],
        "gap": best["test_ood"] - chosen["test_ood"],
    }


def report(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Selection",
        "",
        "Made by `python -m benchmarks.selection`. *Held out*: mean AUROC over sources that a "
        f"setting was not fitted on ({NUM_FOLDS} folds of whole sources); it alone chooses. "
        "*test_ood*: mean AUROC over the English test sets of other sources, shown in hindsight.",
    ]
    for family, found in results["families"].items():
        lines += [
            "",
            f"## {family.capitalize()}",
            "",
            f"Chosen: **{found['chosen']}**. Best in hindsight: {found['best_in_hindsight']}, "
            f"which is {found['gap']:.4f} better.",
            "",
            "| setting | held out | test_ood |",
            "| --- | --- | --- |",
            *(
                f"| {row['setting']} | {row['held_out']:.4f} | {row['test_ood']:.4f} |"
                for row in found["tried"]
            ),
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the selection and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    data, suite = DemurData(), test_suite()
    engine = TransformersEngine.load("embedded", dtype="bfloat16")
    capture = SetCapturer(engine, report=show_progress)
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        "families": select(shipped_rows(data), suite, capture),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "selection.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "selection.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()
