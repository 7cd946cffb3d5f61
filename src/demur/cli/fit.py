"""Fit, calibrate and save a detector from labelled prompts."""

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._session import capture_progress, load_engine, numbers, stderr
from demur.core.artifacts import require_replaceable
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.heads import CategoryHeads
from demur.core.protocols import Detector, Stream, whole
from demur.core.registry import load as load_method
from demur.datasets import jsonl, splits
from demur.workflows import categories as category_heads
from demur.workflows import fit as fitting
from demur.workflows.capture import Capturer

app = typer.Typer(add_completion=False)


Out = Annotated[Path, typer.Option("--out", help="The artifact's folder.")]
Data = Annotated[list[Path], typer.Option("--data", help="Labelled JSON lines; may be repeated.")]
SplitsPath = Annotated[Path | None, typer.Option("--splits", help="Lines with id, file and split.")]
Small = Annotated[bool, typer.Option("--small", help="Only the rows that SPLITS marks small.")]
OptionalRows = Annotated[
    bool, typer.Option("--optional", help="Also the rows that SPLITS marks optional.")
]
Method = Annotated[str, typer.Option("--detector", "-d", help="See demur list.")]
Layers = Annotated[
    str | None, typer.Option("--layers", help="Decoder blocks from 0, such as 9,13,17.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", help="Of the method, as NAME=VALUE; may be repeated."),
]
Categories = Annotated[
    bool,
    typer.Option("--categories", help="Also heads for S1-S14 and OpenAI's keys, by the table."),
]
DefaultFpr = Annotated[
    float, typer.Option("--fpr", help="The default false-positive rate to calibrate.")
]


@app.command()
def fit(
    out: Out,
    data: Data,
    *,
    splits_path: SplitsPath = None,
    small: Small = False,
    optional: OptionalRows = False,
    detector: Method = "linear",
    layers: Layers = None,
    parameters: Parameters = None,
    categories: Categories = False,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    fpr: DefaultFpr = 0.01,
    seed: options.Seed = 0,
) -> None:
    """Fit a detector on labelled prompts, calibrate it on held-out ones, and save it.

    With --splits it fits on train, calibrates on val and reads nothing else; without, 20% of the
    groups are held out for calibration.

    Example: demur fit --data labelled.jsonl --fpr 0.05 --out my-detector

    Example: demur fit --data labelled.jsonl -d mlp -p hidden=128 --fpr 0.05 --out my-detector
    """
    require_replaceable(out)
    method: type[Detector] = load_method("detectors", detector)
    chosen = None if layers is None else numbers(layers)
    given = _parameters(method, parameters or [])
    train, val = _parts(data, splits_path, small=small, optional=optional, seed=seed)
    fitting.require_fittable(train, val, fpr)
    engine = load_engine(model, dtype)
    num_blocks = len(engine.loaded.parts.blocks)
    unfitted = method(method.default_reads(num_blocks, layers=chosen), **given)
    if categories:
        category_heads.require_pooled(unfitted.reads)
    capture = partial(_capture, Capturer(engine.loaded))
    calibrated_on = f"{len(val)} held-out prompts of {', '.join(path.name for path in data)}"
    fitted = fitting.fit(
        unfitted,
        train,
        val,
        capture=capture,
        fpr=fpr,
        calibrated_on=calibrated_on,
        seed=seed,
    )
    heads = _heads(train, val, unfitted, capture) if categories else None
    fitting.write_artifact(
        fitted, detector, engine=engine, train=train, val=val, out=out, heads=heads
    )
    auroc, recall = fitted.metrics["val_auroc"], fitted.metrics["val_recall_at_default"]
    stderr.print(
        f"{escape(str(out))}: validation AUROC {auroc:.4f}, recall {recall:.3f} at the threshold "
        f"for {fpr:g}"
    )


def _heads(
    train: Sequence[Example], val: Sequence[Example], detector: Detector, capture: fitting.Capture
) -> CategoryHeads:
    """Fit category heads, and say which keys have one."""
    heads = category_heads.fit_heads(
        train,
        whole(capture(train, detector)),
        val,
        whole(capture(val, detector)),
        reads=detector.reads,
    )
    for key, words in category_heads.describe(heads).items():
        stderr.print(f"  {key}: {words}")
    return heads


def _parameters(method: type[Detector], given: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that the user gave, after a trial.

    Raises:
        ConfigError: A parameter is malformed, unknown or out of range.
    """
    known = {field.name for field in fields(method)} - {"reads"}
    values: dict[str, Any] = {}
    for parameter in given:
        name, has_value, value = parameter.partition("=")
        if not has_value or name not in known:
            raise ConfigError(
                f"--parameter {parameter!r}: expected NAME=VALUE with a name of {sorted(known)}"
            )
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    try:
        method(method.default_reads(1), **values)
    except TypeError as error:
        raise ConfigError(f"--parameter {' '.join(given)}: {error}") from error
    return values


def _parts(
    data: list[Path], splits_path: Path | None, *, small: bool, optional: bool, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return what to fit on and what to calibrate on."""
    if splits_path is not None:
        parts = splits.apply_splits(data, splits_path, small=small, optional=optional)
        return parts.train, parts.val
    if small or optional:
        raise ConfigError("--small and --optional need --splits")
    return fitting.hold_out([row for path in data for row in jsonl.load(path)], seed=seed)


def _capture(capturer: Capturer, examples: Sequence[Example], detector: Detector) -> Stream:
    with capture_progress() as report:
        chats = [example.chat for example in examples]
        return capturer.parts(chats, detector.reads, report=report)
