"""Trains what benchmarks compare, each once: what lies in the user's cache is not made again."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arms import tell
from demur.core.examples import Example
from demur.core.folders import MANIFEST, read_manifest
from demur.core.registry import load
from demur.core.trained import KIND
from demur.core.training import Progress, Run, Trainer
from demur.core.types import Dtype
from demur.datasets import written
from demur.modeling.gguf import cache_folder
from demur.workflows.fit import describe_set
from demur.workflows.train import train

LEARNING_RATE = 1e-3
"""On held-out questions a tenth of a billion weights learn next to nothing in 100 steps at 2e-4."""


def trained_folder(
    trainer: Trainer, rows: Sequence[Example], model: str, out: Path, *, dtype: Dtype = "auto"
) -> Path:
    """Return an artifact's folder; it is trained unless it lies there, made alike of the same rows.

    A training that was stopped goes on where it was.

    Args:
        trainer: With its hyper-parameters.
        rows: What it learns from.
        model: As `--model` takes it.
        out: The folder.
        dtype: Of the model's weights.
    """
    wanted = [json.loads(json.dumps(trainer.hyper_parameters())), describe_set(rows)]
    if not (out / MANIFEST).is_file() or _made_by(out) != wanted:
        train(trainer, rows, Run(model, dtype=dtype, report=partial(_show, out.name)), out)
    return out


def artifact_folder(method: str, model: str) -> Path:
    """Return where the artifact lies that a trainer makes of the prompts that ship.

    Args:
        method: The trainer's name.
        model: As `--model` takes it.
    """
    return cache_folder() / "trained" / Path(model).stem / method


def trained_by_default(method: str, model: str) -> Path:
    """Return the folder of what a trainer makes of the prompts that ship, with its defaults."""
    trainer = load("trainers", method)()
    return trained_folder(trainer, written.load("train"), model, artifact_folder(method, model))


def training_metrics(folder: Path) -> dict[str, Any]:
    """Return what was measured while an artifact was trained."""
    return dict(_provenance(folder)["metrics"])


def _made_by(out: Path) -> list[Any]:
    provenance = _provenance(out)
    return [provenance["hyper_parameters"], provenance["train"]]


def _provenance(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(out, kind=KIND)["provenance"]
    return found


def _show(name: str, progress: Progress) -> None:
    """Tell of every tenth step."""
    if progress.done % 10 == 0 or progress.done in (1, progress.total):
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        tell(f"{name}: {progress.stage} {progress.done} of {progress.total}{loss}")
