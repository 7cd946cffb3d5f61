"""Answer prompts under the guard, or unguarded for comparison."""

from typing import Annotated, Any

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
)
from demur.core.results import ERROR, PASS
from demur.core.types import Sampling
from demur.guard.packaged import PACKAGED
from demur.workflows.answering import reply_rows

app = typer.Typer(add_completion=False)


@app.command()
def reply(
    text: options.Text = None,
    input_path: options.Input = None,
    *,
    output: options.Output = None,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    detector: options.Detectors = None,
    fpr: options.Fpr = None,
    responder: options.Responder = PACKAGED,
    unguarded: Annotated[
        bool, typer.Option("--unguarded", help="Let the bare model answer; scores are null.")
    ] = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Prompts answered side by side; 1 is exact.")
    ] = 1,
    json_lines: options.Json = False,
) -> None:
    """Answer prompts: flagged ones by the responder, all others by the untouched model.

    Example: demur reply "What is the capital of France?" --max-tokens 32

    Example: demur reply --input prompts.jsonl --output replies.jsonl --responder safety_prompt
    """
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    refuse_overwriting(input_path, output)
    rows, input_hash = read_input(text, input_path)
    engine = load_engine(model, dtype, max_batch=batch)
    guard = None if unguarded else load_guard(engine, detector, fpr=fpr, responder=responder)
    answered_by = guard or engine
    if output is None:
        answers = reply_rows(answered_by, rows, sampling, batch=batch)
        print_rows(answers, as_json if json_lines else _show)
        return
    depends_on = manifest(
        "reply",
        input_hash,
        engine,
        guard,
        responder=responder,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
    )
    run_rows(
        rows,
        lambda left: reply_rows(answered_by, left, sampling, batch=batch),
        output=output,
        depends_on=depends_on,
    )


def _show(row: dict[str, Any]) -> Text:
    if row["route"] == ERROR:
        return Text(f"{row['id']}  error: {row['error']}", style="red")
    style = "green" if row["route"] == PASS else "yellow"
    return Text.assemble((f"{row['id']}  {row['route']}\n", style), row["reply"])
