"""Set a detector's thresholds anew, on benign prompts of your own."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._context import in_context
from demur.cli._session import capture_progress, load_engine, stderr
from demur.core.artifacts import Calibration, Guarantee, save
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.folders import MANIFEST, require_replaceable
from demur.datasets import jsonl
from demur.guard.calibration import Promise
from demur.workflows.calibrate import (
    NUM_LENGTHS,
    groups_of,
    length_parts,
    open_artifact,
    read_scores,
    recalibrated,
    require_benign,
)
from demur.workflows.capture import Capturer

app = typer.Typer(add_completion=False)

Source = Annotated[
    str,
    typer.Option(
        "--detector", "-d", help="pretrained, an artifact's folder, or guard_model:FOLDER."
    ),
]
Data = Annotated[Path, typer.Option("--data", help="JSON lines: benign prompts of your traffic.")]
Out = Annotated[Path | None, typer.Option("--out", help="The new artifact's folder.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace the artifact instead.")]
Rate = Annotated[float, typer.Option("--fpr", help="The default false-positive rate.")]
Confidence = Annotated[
    float, typer.Option("--confidence", help="That the promise holds, between 0 and 1.")
]
Kind = Annotated[
    Guarantee,
    typer.Option("--guarantee", help="binomial, or conformal: on average, less cautious."),
]
Unlabelled = Annotated[
    bool, typer.Option("--unlabelled", help="The prompts are traffic that may hold unsafe ones.")
]
Contamination = Annotated[
    float | None,
    typer.Option("--contamination", help="With --unlabelled: the largest share that is unsafe."),
]
ByLength = Annotated[
    bool, typer.Option("--by-length", help="Keep the rate for short, middling and long prompts.")
]


@app.command()
def calibrate(
    data: Data,
    *,
    detector: Source = "pretrained",
    out: Out = None,
    in_place: InPlace = False,
    fpr: Rate = 0.01,
    confidence: Confidence = 0.95,
    guarantee: Kind = "binomial",
    unlabelled: Unlabelled = False,
    contamination: Contamination = None,
    by_length: ByLength = False,
    leave_out_long: options.LeaveOutLong = False,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
) -> None:
    """Set a detector's thresholds anew, on benign prompts of your own.

    States, weights and probabilities stay. With too few prompts for the rate, it says which rates
    they support, and stops. Without --out or --in-place it shows the thresholds only.

    Example: demur calibrate --data benign.jsonl --fpr 0.01 --out my-detector

    Example: demur calibrate --data traffic.jsonl --unlabelled --contamination 0.02 --out mine
    """
    target = _target(detector, out, in_place=in_place)
    promise = _promise(confidence, guarantee, contamination, unlabelled=unlabelled)
    examples = _examples(data, promise, fpr, by_length=by_length)
    engine = load_engine(model, dtype)
    artifact, fitted = open_artifact(detector, engine)
    capturer = Capturer(engine.loaded)
    (examples,) = in_context(capturer, fitted.reads, examples, leave_out=leave_out_long)
    with capture_progress() as report:
        scores = read_scores(engine, fitted, examples, report=report)
    new = recalibrated(
        artifact,
        scores,
        examples,
        calibrated_on=described(data, examples),
        fpr=fpr,
        promise=promise,
        part=length_parts(engine, examples) if by_length else None,
    )
    typer.echo(promises(new.calibration, data))
    if target is None:
        stderr.print("nothing was written: give --out FOLDER or --in-place")
        return
    save(new, target)
    stderr.print(f"wrote {escape(str(target))}", highlight=False)


def described(data: Path, examples: list[Example]) -> str:
    """Return what a calibration set is, in words."""
    groups = len(set(groups_of(examples)))
    return f"{data.name} ({len(examples)} prompts in {groups} groups)"


def promises(calibration: Calibration, data: Path) -> str:
    """Return a line a threshold: what it promises."""
    lines = [f"for traffic like {data.name}:"]
    for threshold in calibration.thresholds:
        mark = " (default)" if threshold.fpr == calibration.default_fpr else ""
        lines.append(f"  {threshold.threshold:+.4f}{mark}: {threshold.promise}")
    return "\n".join(lines)


def _target(detector: str, out: Path | None, *, in_place: bool) -> Path | None:
    """Return the folder to write to, if any.

    Raises:
        ConfigError: It is not clear, or holds something that is no artifact.
    """
    if out is not None and in_place:
        raise ConfigError("give either --out FOLDER or --in-place, not both")
    if out is not None:
        require_replaceable(out)
    if not in_place:
        return out
    folder = Path(detector)
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"--in-place replaces an artifact's folder, and {detector!r} is none: give --out FOLDER"
        )
    return folder


def _promise(
    confidence: float, guarantee: Guarantee, contamination: float | None, *, unlabelled: bool
) -> Promise:
    if unlabelled != (contamination is not None):
        raise ConfigError(
            "--unlabelled and --contamination SHARE belong together: say how much of the traffic "
            "may be unsafe, at most"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence is {confidence}: expected more than 0, less than 1")
    return Promise(guarantee, round(1 - confidence, 12), contamination or 0.0)


def _examples(data: Path, promise: Promise, fpr: float, *, by_length: bool) -> list[Example]:
    """Return the prompts, if they could support the rate.

    Raises:
        ConfigError: There are too few.
        DataError: One is broken, or labelled unsafe.
    """
    examples = jsonl.load(data)
    if not promise.contamination:
        require_benign(examples)
    num_groups = len(set(groups_of(examples)))
    if by_length:
        shared = replace(promise, delta=promise.delta / NUM_LENGTHS)
        shared.require_supported(fpr, num_groups // NUM_LENGTHS, among=" of each length")
    else:
        promise.require_supported(fpr, num_groups)
    return examples
