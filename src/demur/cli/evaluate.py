"""Measure detectors on sets of labelled prompts, with intervals, controls and a report."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demur.cli import _options as options
from demur.cli._responders import compare_responders
from demur.cli._session import capture_progress, load_engine, stderr
from demur.core.errors import ConfigError, MissingPackageError
from demur.core.registry import import_named
from demur.workflows.capture import Capturer, Report
from demur.workflows.evaluate import NUM_DRAWS, as_json, evaluate, score_models, write
from demur.workflows.evaluate_results import Average, Estimate, Evaluation, Measure
from demur.workflows.evaluate_scores import OpenModel
from demur.workflows.suites import load_suite

app = typer.Typer(add_completion=False)

REPORT_PACKAGES = ("altair", "vl_convert")
ONE_LABEL = "there is no AUROC and no recall at a rate, only how many are flagged"

COLUMNS: dict[str, tuple[Measure, float | None]] = {
    "AUROC": ("auroc", None),
    "recall at\n1% FPR": ("recall_at_fpr", 0.01),
    "unsafe\ncaught": ("recall", None),
    "safe\nflagged": ("flagged_safe", None),
}
"""The means that are shown."""

SuiteName = Annotated[
    str,
    typer.Option(
        "--suite",
        help="Labelled JSON lines, a folder of them, starter, or of the collection in DEMUR_DATA: "
        "demur_data, small, harmful, ordinary.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder for results.json, records.jsonl and report.html.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="embedded (default), a folder, .gguf or hub name; repeats."),
]
Limit = Annotated[
    int, typer.Option("--limit", min=0, help="Most prompts of a set and label; 0: all.")
]
Draws = Annotated[
    int, typer.Option("--draws", min=1, help="Of the bootstrap: more make intervals steadier.")
]
CompareResponders = Annotated[
    list[str] | None,
    typer.Option(
        "--responders", "-r", help="Compare the replies of these behind the detector; repeats."
    ),
]
HasReport = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")]
AsJson = Annotated[bool, typer.Option("--json", help="The results as JSON on standard output.")]


@app.command(name="evaluate")
def evaluate_detectors(
    suite: SuiteName,
    out: Out,
    *,
    detector: options.Detectors = None,
    responders: CompareResponders = None,
    model: Models = None,
    dtype: options.Dtype = "auto",
    limit: Limit = 0,
    draws: Draws = NUM_DRAWS,
    has_report: HasReport = True,
    json_output: AsJson = False,
) -> None:
    """Measure detectors on every set of a suite, at their frozen thresholds, side by side.

    With several models, each detector judges the models that it was fitted on. With --responders
    replies are measured instead, in five arms: see docs/replies.md.

    Example: demur evaluate --suite starter --detector pretrained --out evaluation

    Example: demur evaluate --suite prompts -d linear -d mlp --limit 200 --out evaluation

    Example: demur evaluate --suite starter --responders steering:my-vectors --out replies
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file: name a folder")
    if responders:
        compare_responders(suite, responders, detector, model, dtype=dtype, limit=limit, out=out)
        return
    if has_report:
        _require_report()
    models, detectors = model or ["embedded"], detector or ["pretrained"]
    chosen = load_suite(suite, limit=limit or None)
    if chosen.labels != {"unsafe", "safe"}:
        _tell(f"all prompts of {chosen.name} are {min(chosen.labels)}: {ONE_LABEL}")
    with capture_progress() as report:
        found, contenders = score_models(
            chosen,
            models,
            detectors,
            open_model=partial(_open, dtype=dtype, report=report),
            report=_tell,
        )
        evaluation, records = evaluate(
            chosen,
            found,
            contenders,
            num_draws=draws,
            about={"most prompts of a set and label": limit or None},
            report=_tell,
        )
    write(evaluation, records, out)
    if has_report:
        import_named("demur.workflows.report").write_report(evaluation, out)
    if json_output:
        print(as_json(evaluation), end="")
    else:
        _show(evaluation)
    written = out / ("report.html" if has_report else "results.json")
    stderr.print("written:", escape(str(written)), soft_wrap=True)


def _require_report() -> None:
    """Refuse, before any work, to write a report without what it takes.

    Raises:
        MissingPackageError: A package is not installed.
    """
    missing = [package for package in REPORT_PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"the report needs {', '.join(missing)}: pip install 'demur[report]', or give "
            "--no-report"
        )


def _tell(news: str) -> None:
    stderr.print(escape(news))


def _open(source: str, *, dtype: str, report: Report) -> OpenModel:
    engine = load_engine(source, dtype)
    return OpenModel(
        engine=engine,
        num_blocks=len(engine.loaded.parts.blocks),
        device=str(engine.loaded.device),
        read=partial(Capturer(engine.loaded).parts, report=report),
    )


def _show(evaluation: Evaluation) -> None:
    """Print the means over sets, a table a split and languages."""
    console = Console()
    for split, languages in dict.fromkeys(
        (of.split, of.languages) for of in evaluation.scorers[0].averages
    ):
        table = Table(title=f"{split}, {languages}", title_justify="left", box=None, pad_edge=False)
        table.add_column("scorer", overflow="fold", min_width=21)
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for scorer in evaluation.scorers:
            means = scorer.means(split, languages)
            table.add_row(
                escape(scorer.label), *(_text(means.get(key)) for key in COLUMNS.values())
            )
        console.print(table)
        console.print()
    for scorer in evaluation.scorers:
        for name, value in scorer.measured.items():
            console.print(f"{escape(scorer.label)}: {name.replace('_', ' ')} {value:.3f}")


def _text(average: Average | None) -> str:
    if average is None:
        return "–"
    return f"{average.mean.value:.3f}{_interval(average.mean)}"


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"\n[{low:.2f}, {high:.2f}]"
