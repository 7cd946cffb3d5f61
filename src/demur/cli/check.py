"""Score prompts: one verdict a prompt, without answering any."""

from typing import Any

import typer
from rich.text import Text

from demur.cli import _options as options
from demur.cli._session import (
    as_json,
    load_engine,
    load_guard,
    manifest,
    print_rows,
    read_input,
    refuse_overwriting,
    run_rows,
    score_bar,
)
from demur.workflows.answering import check_rows

app = typer.Typer(add_completion=False)


@app.command()
def check(
    text: options.Text = None,
    input_path: options.Input = None,
    *,
    output: options.Output = None,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    detector: options.Detectors = None,
    fpr: options.Fpr = None,
    json_lines: options.Json = False,
) -> None:
    """Score prompts: one verdict a prompt, in order, without answering any.

    Exit codes: 0 all scored; 2 the input or an option is wrong; 3 some rows could not be scored.

    Example: demur check "How do I kill a Python process?"

    Example: demur check --input prompts.jsonl.gz --output verdicts.jsonl --fpr 0.01
    """
    refuse_overwriting(input_path, output)
    rows, input_hash = read_input(text, input_path)
    engine = load_engine(model, dtype)
    guard = load_guard(engine, detector, fpr=fpr)
    if output is None:
        print_rows(check_rows(guard, rows), as_json if json_lines else _show)
        return
    depends_on = manifest("check", input_hash, engine, guard)
    run_rows(rows, lambda left: check_rows(guard, left), output=output, depends_on=depends_on)


def _show(row: dict[str, Any]) -> Text:
    if row.get("error"):
        return Text(f"{row['id']}  not scored: {row['error']}", style="red")
    word = Text("flagged", style="bold red") if row["flagged"] else Text("pass   ", style="green")
    numbers = f"  score {row['score']:+.3f}  threshold {row['threshold']:+.3f}  {row['detector']}"
    bar = score_bar(row["probability"], is_flagged=row["flagged"])
    return Text.assemble(f"{row['id']}  ", bar, "  ", word, numbers)
