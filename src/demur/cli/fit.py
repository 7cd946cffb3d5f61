"""Fit, calibrate and save a detector from labelled prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._context import in_context
from demur.cli._parameters import parameters as parse_parameters
from demur.cli._replies import answered, as_watches, require_streaming, with_labelled_replies
from demur.cli._session import capture_progress, load_engine, numbers, stderr
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.folders import require_replaceable
from demur.core.heads import CategoryHeads
from demur.core.protocols import Detector, Engine, Stream, Watches, whole
from demur.core.reads import Read, by_token, of_reply
from demur.core.registry import load as load_method
from demur.datasets import jsonl, splits
from demur.workflows import categories as category_heads
from demur.workflows import fit as fitting
from demur.workflows.capture import MAX_REPLY_TOKENS, Capturer
from demur.workflows.replies import to_be_answered

app = typer.Typer(add_completion=False)

REPLIES_SPLIT = "responses_train"
"""What split files call labelled replies to learn from."""


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
WatchesOption = Annotated[
    str, typer.Option("--watches", help="prompt, or reply: judges response by response_label.")
]
OwnReplies = Annotated[
    Path | None,
    typer.Option("--own-replies", help="Benign prompts: the model's own replies count as safe."),
]
OwnTokens = Annotated[
    int, typer.Option("--own-tokens", min=1, help="Most tokens of each of the model's own replies.")
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
    watches: WatchesOption = "prompt",
    own_replies: OwnReplies = None,
    own_tokens: OwnTokens = 128,
    leave_out_long: options.LeaveOutLong = False,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    fpr: DefaultFpr = 0.01,
    seed: options.Seed = 0,
) -> None:
    """Fit a detector on labelled prompts, calibrate it on held-out ones, and save it.

    With --splits it fits on train, calibrates on val and reads nothing else; without, 20% of the
    groups are held out for calibration. With --watches reply it learns to judge the replies of the
    rows (also those of responses_train), and needs ordinary ones too: see --own-replies.

    Example: demur fit --data labelled.jsonl --fpr 0.05 --out my-detector

    Example: demur fit --data labelled.jsonl -d mlp -p hidden=128 --fpr 0.05 --out my-detector

    Example: demur fit --data replies.jsonl --watches reply --own-replies benign.jsonl --out monitor
    """
    require_replaceable(out)
    judged = as_watches(watches)
    method = _method(detector, judged, own_replies, categories=categories)
    chosen = None if layers is None else numbers(layers)
    given = _parameters(method, parameters or [])
    train, val = _parts(
        data, splits_path, own_replies, judged, small=small, optional=optional, seed=seed
    )
    fitting.require_fittable(train, val, fpr)
    engine = load_engine(model, dtype)
    reads = method.default_reads(len(engine.loaded.parts.blocks), layers=chosen)
    unfitted = _unfitted(method, judged, reads, given, categories=categories)
    capturer = Capturer(engine.loaded)
    train, val = in_context(capturer, reads, train, val, leave_out=leave_out_long)
    train, val = (answered(engine, part, judged, max_tokens=own_tokens) for part in (train, val))
    capture, follow = _captures(capturer, judged)
    fitted = fitting.fit(
        unfitted,
        train,
        val,
        capture=capture,
        follow=follow,
        fpr=fpr,
        calibrated_on=_calibrated_on(judged, len(val), data, own_replies, own_tokens=own_tokens),
        seed=seed,
    )
    heads = _heads(train, val, unfitted, capture) if categories else None
    _save(fitted, detector, engine, (train, val), out, heads=heads)


def _save(
    fitted: fitting.Fitted,
    method: str,
    engine: Engine,
    parts: tuple[list[Example], list[Example]],
    out: Path,
    *,
    heads: CategoryHeads | None,
) -> None:
    """Write the artifact, and say how it does."""
    train, val = parts
    fitting.write_artifact(
        fitted, method, engine=engine, train=train, val=val, out=out, heads=heads
    )
    auroc, recall = fitted.metrics["val_auroc"], fitted.metrics["val_recall_at_default"]
    stderr.print(
        f"{escape(str(out))}: validation AUROC {auroc:.4f}, recall {recall:.3f} at the threshold "
        f"for {fitted.calibration.default_fpr:g}"
    )


def _heads(
    train: Sequence[Example], val: Sequence[Example], detector: Detector, capture: fitting.Capture
) -> CategoryHeads:
    """Fit category heads, and say which keys have one."""
    heads = category_heads.fit_heads(
        train,
        whole(capture(train, detector.reads)),
        val,
        whole(capture(val, detector.reads)),
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
    known = {field.name for field in fields(method)} - {"reads", "watches"}
    values = parse_parameters(given, known)
    try:
        method(method.default_reads(1), **values)
    except TypeError as error:
        raise ConfigError(f"--parameter {' '.join(given)}: {error}") from error
    return values


def _method(
    name: str, watches: Watches, own_replies: Path | None, *, categories: bool
) -> type[Detector]:
    """Return a method that can judge what it is asked to.

    Raises:
        ConfigError: It cannot, or an option is given that is not for what it judges.
    """
    method: type[Detector] = load_method("detectors", name)
    if watches == "reply":
        require_streaming(name, method)
        if categories:
            raise ConfigError(
                "--categories names what prompts are about: it needs --watches prompt"
            )
    elif own_replies is not None:
        raise ConfigError("--own-replies needs --watches reply")
    return method


def _unfitted(
    method: type[Detector],
    watches: Watches,
    reads: tuple[Read, ...],
    given: Mapping[str, Any],
    *,
    categories: bool,
) -> Detector:
    """Return the detector with its parameters.

    Raises:
        ConfigError: It cannot read what it is to judge, or category heads cannot read what it does.
    """
    if categories:
        category_heads.require_pooled(reads)
    return method(of_reply(reads) if watches == "reply" else reads, watches=watches, **given)


def _parts(
    data: list[Path],
    splits_path: Path | None,
    own_replies: Path | None,
    watches: Watches,
    *,
    small: bool,
    optional: bool,
    seed: int,
) -> tuple[list[Example], list[Example]]:
    """Return what to fit on and what to calibrate on; own replies are still to be written."""
    if splits_path is not None:
        unparted = (REPLIES_SPLIT,) if watches == "reply" else ()
        parts = splits.apply_splits(
            data, splits_path, small=small, optional=optional, unparted=unparted
        )
    elif small or optional:
        raise ConfigError("--small and --optional need --splits")
    else:
        parts = splits.TrainAndVal([], [], [row for path in data for row in jsonl.load(path)])
    if watches == "reply":
        parts = with_labelled_replies(parts)
    if own_replies is not None:
        parts.unparted.extend(to_be_answered(jsonl.load(own_replies)))
    held_in, held_out = fitting.hold_out(parts.unparted, seed=seed)
    return parts.train + held_in, parts.val + held_out


def _calibrated_on(
    watches: Watches,
    number: int,
    data: Sequence[Path],
    own_replies: Path | None,
    *,
    own_tokens: int,
) -> str:
    names = ", ".join(path.name for path in data)
    if watches == "prompt":
        return f"{number} held-out prompts of {names}"
    if own_replies is not None:
        names += f" and of the model's own to {own_replies.name}, of up to {own_tokens} tokens"
    return (
        f"{number} held-out replies of {names}, each by the highest score that it has within its "
        f"first {MAX_REPLY_TOKENS} tokens"
    )


def _captures(
    capturer: Capturer, watches: Watches
) -> tuple[fitting.Capture, fitting.Capture | None]:
    """Return what reads prompts or replies, and what follows replies token by token."""
    follow = partial(_follow, capturer) if watches == "reply" else None
    return partial(_capture, capturer, watches=watches), follow


def _capture(
    capturer: Capturer, examples: Sequence[Example], reads: Sequence[Read], *, watches: Watches
) -> Stream:
    """Read prompts, or replies, into the cache."""
    chats = [example.chat for example in examples]
    replies = _replies(examples) if watches == "reply" else None
    with capture_progress() as report:
        return capturer.parts(chats, reads, replies=replies, report=report)


def _follow(capturer: Capturer, examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
    """Read replies by token, and keep nothing."""
    chats = [example.chat for example in examples]
    with capture_progress() as report:
        yield from capturer.passing(
            chats, by_token(reads), replies=_replies(examples), report=report
        )


def _replies(examples: Sequence[Example]) -> list[str]:
    return [example.response or "" for example in examples]
