"""Trains a responder, and writes its artifact with a card."""

from collections.abc import Sequence
from pathlib import Path

from demur.core.examples import Example
from demur.core.folders import require_replaceable
from demur.core.trained import save_trained
from demur.core.training import Outcome, Run, Trainer
from demur.workflows.fit import describe_set
from demur.workflows.machine import library_versions


def train(trainer: Trainer, examples: Sequence[Example], run: Run, out: Path) -> Outcome:
    """Train a responder on labelled prompts and write its artifact.

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
    outcome = trainer.train(examples, run)
    trained_on = describe_set(examples)
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
        card=_card(trainer, outcome, trained_on),
    )
    return outcome


def _card(trainer: Trainer, outcome: Outcome, trained_on: dict[str, object]) -> str:
    sources = trained_on["sources"]
    assert isinstance(sources, dict)
    lines = [
        f"# A `{trainer.makes}` responder for {outcome.model_id.name}",
        "",
        "Changes how the model answers the prompts that a guard hands to it. Whether these replies "
        "are safer has to be measured on the model and the prompts at hand.",
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
