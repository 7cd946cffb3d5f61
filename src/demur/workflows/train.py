"""Trains a responder, and writes its artifact with a card and a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demur.core.examples import Example
from demur.core.folders import require_replaceable
from demur.core.trained import save_trained
from demur.core.training import Outcome, Run, Trainer
from demur.workflows.fit import describe_set
from demur.workflows.machine import library_versions
from demur.workflows.training_report import REPORT, render


def train(trainer: Trainer, examples: Sequence[Example], run: Run, out: Path) -> Outcome:
    """Train a responder on labelled prompts and write its artifact.

    A long training keeps its state beside the artifact until that is written: the same call goes on
    after a run that was killed, and a call with other examples or hyper-parameters begins anew.

    Args:
        trainer: With its hyper-parameters.
        examples: What it learns from.
        run: The model, the seed, and who is told of progress.
        out: The artifact's folder; an earlier artifact there is replaced.

    Raises:
        ConfigError: There is no such model, or the folder holds something else.
        DataError: The examples lack what the method learns from.
    """
    require_replaceable(out)
    checkpoint = run.checkpoint or checkpoint_path(out)
    outcome = trainer.train(examples, replace(run, checkpoint=checkpoint))
    trained_on = describe_set(examples)
    has_report = bool(outcome.curve)
    report = {REPORT: render(trainer, outcome, trained_on)} if has_report else {}
    save_trained(
        out,
        method=trainer.makes,
        model_id=outcome.model_id,
        tensors=outcome.tensors,
        fields=outcome.fields,
        provenance={
            "versions": library_versions("torch", "transformers"),
            "hyper_parameters": trainer.hyper_parameters(),
            "seed": run.seed,
            "train": trained_on,
            "metrics": dict(outcome.metrics),
            "curve": list(outcome.curve),
        },
        card=_card(trainer, outcome, trained_on, has_report=has_report),
        tensors_file=outcome.tensors_file,
        files={**outcome.files, **report},
    )
    checkpoint.unlink(missing_ok=True)
    return outcome


def checkpoint_path(out: Path) -> Path:
    """Return where the state of a training is kept while it runs."""
    return out.with_name(f".{out.name}.checkpoint")


def _card(
    trainer: Trainer, outcome: Outcome, trained_on: dict[str, object], *, has_report: bool
) -> str:
    sources = trained_on["sources"]
    assert isinstance(sources, dict)
    lines = [
        f"# A `{trainer.makes}` responder for {outcome.model_id.name}",
        "",
        "Changes how the model answers the prompts that a guard hands to it. Whether these replies "
        "are safer has to be measured on the model and the prompts at hand.",
        *(["", f"How its training went: `{REPORT}`."] if has_report else []),
        "",
        "## Trained on",
        "",
        "| source | unsafe | safe |",
        "| --- | --- | --- |",
        *(f"| {name} | {of['unsafe']} | {of['safe']} |" for name, of in sorted(sources.items())),
        "",
        "## How",
        "",
        "| hyper-parameter | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in trainer.hyper_parameters().items()),
    ]
    if outcome.metrics:
        lines += ["", "| measured while training | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in outcome.metrics.items()]
    return "\n".join(lines) + "\n"
