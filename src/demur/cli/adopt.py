"""Say whether a detector may serve a variant of its model, and adapt it where it may."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._session import capture_progress, load_engine, stderr
from demur.cli.calibrate import described, promises
from demur.core import artifacts
from demur.core.artifacts import save
from demur.core.examples import Example
from demur.core.folders import require_replaceable
from demur.core.readings import Array
from demur.datasets import jsonl, starter
from demur.guard.calibration import STANDARD
from demur.guard.loading import find_artifact
from demur.workflows.adopt import (
    MAX_STATE_SHIFT,
    Comparison,
    Scored,
    adopted,
    compare,
    require_same_architecture,
)
from demur.workflows.calibrate import (
    groups_of,
    open_artifact,
    read_scores,
    require_benign,
    restore_of_prompts,
)

EXIT_REFIT = 4
"""The detector cannot serve the variant: fit one on it."""

app = typer.Typer(add_completion=False)

Source = Annotated[
    str, typer.Option("--detector", "-d", help="An artifact's folder, or a packaged one's name.")
]
Variant = Annotated[
    str, typer.Option("--model", "-m", help="The variant: a folder, a .gguf file, or a hub name.")
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The model that the detector was fitted on, if at hand."),
]
Benign = Annotated[
    Path, typer.Option("--benign", help="JSON lines: benign prompts of your traffic.")
]
Labelled = Annotated[
    Path | None,
    typer.Option("--labelled", help="Unsafe and safe prompts; the starter set where not given."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The folder of the artifact for the variant.")
]


@app.command()
def adopt(
    detector: Source,
    model: Variant,
    benign: Benign,
    *,
    labelled: Labelled = None,
    reference: Reference = None,
    out: Out = None,
    fpr: options.Fpr = None,
    dtype: options.Dtype = "auto",
    json_lines: options.Json = False,
) -> None:
    """Say whether a detector may serve a variant of its model, and adapt it where it may.

    The answer is `accept` (use it as it is), `recalibrate` (thresholds anew on the benign prompts;
    --out takes the artifact for the variant, without category heads) or `refit`, with exit code 4.

    Example: demur adopt -d my-detector -m model-q4.gguf --benign benign.jsonl --out my-detector-q4
    """
    if out is not None:
        require_replaceable(out)
    of_traffic = jsonl.load(benign)
    require_benign(of_traffic)
    of_both = starter.load("val") if labelled is None else jsonl.load(labelled)
    sets = (of_traffic, of_both)
    before = (None, None) if reference is None else _scores_before(detector, reference, dtype, sets)
    engine = load_engine(model, dtype)
    artifact = artifacts.read(find_artifact(detector, engine.model_id))
    require_same_architecture(artifact, engine.model_id)
    fitted = restore_of_prompts(artifact)
    rate = artifact.calibration.default_fpr if fpr is None else artifact.calibration.at(fpr).fpr
    STANDARD.require_supported(rate, len(set(groups_of(of_traffic))))
    with capture_progress() as report:
        traffic, both = (
            Scored(examples, read_scores(engine, fitted, examples, report=report), scores_before)
            for examples, scores_before in zip(sets, before, strict=True)
        )
    found = compare(artifact, fitted, engine, benign=traffic, labelled=both, fpr=rate)
    typer.echo(json.dumps(found.as_dict()) if json_lines else _words(found))
    if found.decision == "refit":
        raise typer.Exit(EXIT_REFIT)
    if found.decision == "accept":
        return
    if out is None:
        stderr.print("give --out FOLDER to write the artifact for the variant")
        return
    new = adopted(
        artifact,
        fitted,
        engine,
        benign=traffic,
        labelled=both,
        calibrated_on=described(benign, of_traffic),
        fpr=rate,
        promise=STANDARD,
    )
    save(new, out)
    stderr.print(
        escape(f"wrote {out}, {promises(new.calibration, benign)}"), highlight=False, soft_wrap=True
    )


def _scores_before(
    detector: str, reference: str, dtype: str, sets: Sequence[Sequence[Example]]
) -> list[Array]:
    """Return the scores of sets on the model that a detector was fitted on, and forget the model.

    Raises:
        ModelMismatchError: It was fitted on another one.
    """
    engine = load_engine(reference, dtype)
    _, fitted = open_artifact(detector, engine)
    with capture_progress() as report:
        return [read_scores(engine, fitted, examples, report=report) for examples in sets]


def _words(found: Comparison) -> str:
    """Return a comparison for people: a line a criterion, and the decision last."""
    tokens = "other tokens" if found.score_shift is None else f"moved by {found.score_shift:.4g}"
    states = "not read" if found.state_shift is None else f"moved by {found.state_shift:.3g}"
    ranks = "" if found.rank_correlation is None else f", ranks {found.rank_correlation:.4f}"
    lines = [
        f"same tokenizer and template: {', '.join(found.differences) or 'yes'}"
        + (" differ" if found.differences else ""),
        f"fingerprint scores: {tokens}, tolerated {found.score_tolerance:.4g}",
        f"fingerprint states: {states}, tolerated {MAX_STATE_SHIFT:g} of their spread",
        f"labelled prompts: AUROC {found.auroc:.4f}, needed {found.auroc_needed:.4f}{ranks}",
        f"benign prompts: {found.flag_rate:.4f} flagged (at least {found.flag_rate_proven:.4f} "
        f"with 95% confidence), promised {found.fpr:g}",
        found.decision,
    ]
    return "\n".join(lines)
