"""Evaluates detectors on a suite: read, score, measure, and write what was found.

Nothing is chosen here: thresholds are those of the artifacts, and a set's prompts are only judged.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.readings import Array
from demur.workflows.evaluate_curves import curves
from demur.workflows.evaluate_measures import (
    averages,
    comparisons,
    measure,
    probabilities,
    set_result,
)
from demur.workflows.evaluate_results import Evaluation, ModelResult, ScorerResult
from demur.workflows.evaluate_scores import (
    Contender,
    News,
    OpenModel,
    controls,
    ignore_news,
    load_judges,
    score_suite,
)
from demur.workflows.machine import describe_machine
from demur.workflows.sources import replace_file
from demur.workflows.suites import SOFT_LABELS, Suite

RESULTS, RECORDS = "results.json", "records.jsonl"
NUM_DRAWS = 1000
"""Of the bootstrap."""


def score_models(
    suite: Suite,
    models: Sequence[str],
    detectors: Sequence[str],
    *,
    open_model: Callable[[str], OpenModel],
    report: News = ignore_news,
) -> tuple[list[ModelResult], list[Contender]]:
    """Score a suite with each model's detectors, one model in memory at a time.

    Args:
        suite: What is scored.
        models: What `open_model` knows.
        detectors: Artifact folders or names. With one model all must fit it; of several, each
            detector judges those that it fits, and must fit one.
        open_model: Loads a model.
        report: Is told of progress.

    Raises:
        ConfigError: Two models or detectors have one name, or a model has no detector.
        ModelMismatchError: A detector was fitted on none of the models.
    """
    refused: dict[str, ModelMismatchError] = {}
    found: list[ModelResult] = []
    contenders: list[Contender] = []
    fitting: set[str] = set()
    for source in models:
        model = open_model(source)
        if model.name in {other.name for other in found}:
            raise ConfigError(f"two models are called {model.name!r}: rename a folder")
        refused_here: dict[str, ModelMismatchError] = {}
        judges = load_judges(model, detectors, refused_here)
        if refused_here and (len(models) == 1 or not judges):
            raise next(iter(refused_here.values()))
        refused |= refused_here
        fitting |= set(detectors) - set(refused_here)
        found.append(ModelResult(model.name, model.engine.model_id.as_dict(), model.device))
        contenders += score_suite(model, judges, suite, report=report)
    for source, error in refused.items():
        if source not in fitting:
            raise error
    return found, contenders


def evaluate(
    suite: Suite,
    models: Sequence[ModelResult],
    contenders: Sequence[Contender],
    *,
    num_draws: int = NUM_DRAWS,
    about: Mapping[str, object] | None = None,
    report: News = ignore_news,
) -> tuple[Evaluation, list[dict[str, object]]]:
    """Measure scored detectors, with the controls beside them.

    Args:
        suite: What was scored.
        models: That were read.
        contenders: Detectors with their scores, from `score_models`.
        num_draws: Of the bootstrap.
        about: The options, for the results.
        report: Is told of progress.

    Returns:
        What was found, and a record a prompt and detector, without its text.

    Raises:
        DataError: No prompt is left that all models can take.
    """
    num_prompts = sum(len(of.examples) for of in suite.sets)
    suite, contenders = _taken_by_all(suite, contenders)
    scorers = [*contenders, *controls(suite, contenders[0])]
    of_sets, of_splits = comparisons(suite)
    measured = measure(of_sets, of_splits, scorers, num_draws=num_draws, report=report)
    results = [
        ScorerResult(
            name=scorer.name,
            label=_label(scorer, num_models=len(models)),
            model=scorer.model,
            version=scorer.version,
            default_threshold=scorer.thresholds[0].threshold if scorer.thresholds else None,
            sets=tuple(set_result(of, scorer, numbers[of.name]) for of in of_sets),
            splits=tuple(set_result(of, scorer, numbers[of.name]) for of in of_splits),
            averages=averages(of_sets, scorer, numbers, None if place == 0 else measured[0]),
            curves=curves(suite, of_splits, scorer),
            measured=scorer.measured,
        )
        for place, (scorer, numbers) in enumerate(zip(scorers, measured, strict=True))
    ]
    kept = {of.name for of in suite.sets}
    evaluation = Evaluation(
        suite=suite.name,
        splits=suite.splits,
        num_prompts=sum(len(of.examples) for of in suite.sets),
        num_left_out=num_prompts - sum(len(of.examples) for of in suite.sets),
        num_draws=num_draws,
        soft_labels={name: note for name, note in SOFT_LABELS.items() if name in kept},
        clusters=suite.clusters,
        models=tuple(models),
        scorers=tuple(results),
        machine=describe_machine(),
        about=dict(about or {}),
    )
    return evaluation, _records(suite, contenders)


def _label(scorer: Contender, *, num_models: int) -> str:
    """Return what tells a scorer apart from the others."""
    if scorer.model is None or num_models == 1:
        return scorer.name
    return f"{scorer.name} on {scorer.model}"


def _taken_by_all(suite: Suite, contenders: Sequence[Contender]) -> tuple[Suite, list[Contender]]:
    """Leave out the prompts that a model could not take, for all scorers alike."""
    rows: dict[str, Array] = {}
    for of in suite.sets:
        scored = np.stack([~np.isnan(contender.scores[of.name]) for contender in contenders])
        rows[of.name] = np.flatnonzero(scored.all(0))
    sets = {name: frozenset(of_set.tolist()) for name, of_set in rows.items()}
    kept = suite.keeping(lambda name, row: row in sets[name])
    if not kept.sets:
        raise DataError(f"no prompt of {suite.name} is left that all models can take")
    left = {of.name: rows[of.name] for of in kept.sets}
    return kept, [contender.taking(left) for contender in contenders]


def _records(suite: Suite, contenders: Sequence[Contender]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for contender in contenders:
        for of in suite.sets:
            scores = contender.scores[of.name]
            chances = probabilities(contender.platt or (0.0, 0.0), scores)
            flags = scores >= contender.thresholds[0].threshold
            for row, example in enumerate(of.examples):
                found.append(
                    {
                        "id": example.id,
                        "set": of.name,
                        "split": of.split,
                        "label": example.label,
                        "group": example.group_key,
                        "language": example.language,
                        "model": contender.model,
                        "detector": contender.name,
                        "score": float(scores[row]),
                        "probability": float(chances[row]),
                        "flagged": bool(flags[row]),
                    }
                )
    return found


def write(evaluation: Evaluation, records: Sequence[Mapping[str, object]], out: Path) -> None:
    """Write `results.json` and `records.jsonl` into a folder, each whole or not at all.

    Args:
        evaluation: What was found.
        records: One a prompt and detector.
        out: The folder; it is made, and files of these names in it are replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    replace_file(out / RECORDS, "".join(f"{line}\n" for line in lines).encode())
    replace_file(out / RESULTS, as_json(evaluation).encode())


def as_json(evaluation: Evaluation) -> str:
    """Return the results as JSON."""
    return json.dumps(asdict(evaluation), indent=1, allow_nan=False) + "\n"
