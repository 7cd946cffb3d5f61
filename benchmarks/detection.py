"""Measures detection: the shipped detector and a research one, each beside TF-IDF on the same rows.

`shipped` is the packaged artifact; `research` is `linear` with its defaults, fitted on the small
selection of all sets, non-commercial ones included. Each has a TF-IDF classifier (words and
characters) refitted on the same rows, with its penalty chosen on the same validation rows. Every
threshold is the one that calibration gives for 1% false positives on validation prompts; no test
prompt has a say in it. Each set is reported by itself.

    DEMUR_DATA=FOLDER python -m benchmarks.detection [--json]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from benchmarks.build_pretrained import FPR, OUT, fit_selection, show_progress
from benchmarks.detection_report import report
from benchmarks.machine import describe_machine
from benchmarks.rows import TEST_SPLITS, Selection, SetCapturer, research_rows, shipped_rows
from demur.core import artifacts
from demur.core.artifacts import Calibration
from demur.core.examples import Example
from demur.core.protocols import Detector
from demur.core.readings import Array, Readings
from demur.core.reads import Texts
from demur.datasets.demur_data import DemurData
from demur.detectors.tfidf import Tfidf
from demur.engines.transformers import TransformersEngine
from demur.guard.calibration import calibrate
from demur.workflows.capture import Capturer
from demur.workflows.fit import targets_of

RESULTS = Path(__file__).parent / "results"
BENIGN_POOL = "alpaca_eval"
"""What an unsafe English set is compared with; `mgsm` for sets in other languages."""
OTHER_LANGUAGES = frozenset({"multijail", "catqa_vi"})
BY_CATEGORY = frozenset({"do_not_answer", "harmbench", "openai_moderation", "prompt_injection"})
BOOTSTRAP_DRAWS = 1000
TFIDF_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Values of `c` to choose from."""

Scores = dict[tuple[str, str], Array]
"""By set and split."""


@dataclass(frozen=True)
class Contender:
    """A scorer of prompts with the threshold that its validation prompts gave it."""

    name: str
    score: Callable[[Sequence[Example]], Array]
    threshold: float
    scores_on_val: dict[str, float]


def linear(
    name: str, detector: Detector, calibration: Calibration, capture: SetCapturer
) -> Contender:
    """Return a fitted detector as a contender."""
    return Contender(
        name,
        lambda examples: detector.decision_function(capture.read(examples, detector.reads)),
        calibration.at(FPR).threshold,
        {"realised_fpr": calibration.at(FPR).realised_fpr},
    )


def texts_of(examples: Sequence[Example]) -> Readings:
    """Return what the user says in each."""
    return Readings({Texts(): tuple(example.chat.last_user_text for example in examples)})


def tfidf(selection: Selection) -> Contender:
    """Fit TF-IDF on a selection, and calibrate it as a detector is calibrated.

    The penalty is the one of the best AUROC on validation prompts.
    """
    targets, val = targets_of(selection.train), targets_of(selection.val)
    train, val_texts = texts_of(selection.train), texts_of(selection.val)
    best_auroc, best = -1.0, Tfidf((Texts(),))
    for c in TFIDF_PENALTIES:
        detector = Tfidf((Texts(),), c=c).fit(train, targets, seed=0)
        auroc = float(roc_auc_score(val.unsafe, detector.decision_function(val_texts)))
        if auroc > best_auroc:
            best_auroc, best = auroc, detector
    scores = best.decision_function(val_texts)
    calibration = calibrate(
        scores, val.unsafe, val.group, rates=(FPR,), calibrated_on="", default_fpr=FPR
    )
    return Contender(
        f"{selection.name} TF-IDF",
        lambda examples: best.decision_function(texts_of(examples)),
        calibration.at(FPR).threshold,
        {"realised_fpr": calibration.at(FPR).realised_fpr, "c": best.c},
    )


def rate(flags: Array) -> dict[str, Any] | None:
    """Return the share of flagged prompts with its 95% Clopper-Pearson interval."""
    if not len(flags):
        return None
    interval = binomtest(int(flags.sum()), len(flags)).proportion_ci(0.95, method="exact")
    return {"rate": float(flags.mean()), "interval": [interval.low, interval.high]}


def tpr_at(scores: Array, unsafe: Array, fpr: float) -> float:
    """Return the share of unsafe prompts over the threshold that a share of safe ones exceeds."""
    return float((scores[unsafe] > np.quantile(scores[~unsafe], 1 - fpr)).mean())


def auroc_with_interval(scores: Array, unsafe: Array, group: Array) -> dict[str, Any]:
    """Return the AUROC with a 95% bootstrap interval over groups."""
    generator = np.random.default_rng(0)
    names, places = np.unique(group, return_inverse=True)
    members = [np.flatnonzero(places == number) for number in range(len(names))]
    draws = []
    for _ in range(BOOTSTRAP_DRAWS):
        chosen = generator.integers(len(names), size=len(names))
        rows = np.concatenate([members[number] for number in chosen])
        draws.append(roc_auc_score(unsafe[rows], scores[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"auroc": float(roc_auc_score(unsafe, scores)), "interval": [float(low), float(high)]}


def in_distribution(
    examples: Sequence[Example], scores: Array, small_ids: set[str]
) -> dict[str, Any]:
    """Return AUROC and recall on all of test_id, and on its small balanced selection."""
    targets = targets_of(examples)
    is_small = np.array([example.id in small_ids for example in examples])
    found: dict[str, Any] = {}
    for name, rows in (("test_id", np.ones(len(examples), bool)), ("test_id small", is_small)):
        unsafe = targets.unsafe[rows]
        found[name] = {
            "unsafe": int(unsafe.sum()),
            "safe": int((~unsafe).sum()),
            **auroc_with_interval(scores[rows], unsafe, targets.group[rows]),
            "tpr_at_1_percent": tpr_at(scores[rows], unsafe, 0.01),
        }
    return found


def of_set(
    examples: Sequence[Example], scores: Array, threshold: float, pool: Array
) -> dict[str, Any]:
    """Return what a contender does on one set, or on a category of one."""
    unsafe = np.array([example.label == "unsafe" for example in examples])
    flags = scores >= threshold
    if unsafe.all():
        against = np.concatenate([scores, pool])
        auroc = roc_auc_score(np.arange(len(against)) < len(scores), against)
    else:
        auroc = roc_auc_score(unsafe, scores) if unsafe.any() else None
    return {
        "unsafe": int(unsafe.sum()),
        "safe": int((~unsafe).sum()),
        "caught": rate(flags[unsafe]),
        "flagged_safe": rate(flags[~unsafe]),
        "auroc": None if auroc is None else float(auroc),
    }


def categories_of(
    examples: Sequence[Example], scores: Array, threshold: float, pool: Array
) -> dict[str, Any]:
    """Return `of_set` for each category of a set."""
    found = {}
    for category in sorted({example.category or "none" for example in examples}):
        rows = [n for n, e in enumerate(examples) if (e.category or "none") == category]
        found[category] = of_set([examples[r] for r in rows], scores[rows], threshold, pool)
    return found


def evaluate(
    contender: Contender, test: dict[tuple[str, str], list[Example]], small_ids: set[str]
) -> dict[str, Any]:
    """Return all numbers of one contender."""
    scores = {key: contender.score(examples) for key, examples in test.items()}
    sets: dict[str, Any] = {}
    for (split, name), examples in test.items():
        pool = scores["utility", "mgsm" if name in OTHER_LANGUAGES else BENIGN_POOL]
        arguments = (examples, scores[split, name], contender.threshold, pool)
        sets.setdefault(split, {})[name] = of_set(*arguments)
        if name in BY_CATEGORY:
            sets[split][name]["categories"] = categories_of(*arguments)
    inside = [key for key in test if key[0] == "test_id"]
    return {
        "threshold": contender.threshold,
        "validation": contender.scores_on_val,
        "in_distribution": in_distribution(
            [example for key in inside for example in test[key]],
            np.concatenate([scores[key] for key in inside]),
            small_ids,
        ),
        "sets": sets,
    }


def test_rows(data: DemurData) -> dict[tuple[str, str], list[Example]]:
    """Return the prompts of each test split and set."""
    loaded = {
        (split, name): data.load(name, (split,)) for split in TEST_SPLITS for name in data.sets
    }
    return {key: examples for key, examples in loaded.items() if examples}


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    data = DemurData()
    engine = TransformersEngine.load("embedded", dtype="bfloat16")
    capture = SetCapturer(Capturer(engine.loaded), report=show_progress)
    packaged = artifacts.read(OUT)
    research = research_rows(data)
    fitted = fit_selection(engine, capture, research)
    contenders = [
        linear("shipped", artifacts.restore(packaged), packaged.calibration, capture),
        tfidf(shipped_rows(data)),
        linear("research", fitted.detector, fitted.calibration, capture),
        tfidf(research),
        Contender(
            "length",
            lambda rows: np.array([float(len(e.chat.last_user_text)) for e in rows]),
            float("inf"),
            {},
        ),
    ]
    small = {e.id for name in data.sets for e in data.load(name, ("test_id",), small=True)}
    test = test_rows(data)
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        "fpr": FPR,
        "shipped_sha256": packaged.sha256,
        "contenders": {c.name: evaluate(c, test, small) for c in contenders},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "detection.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "detection.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()
