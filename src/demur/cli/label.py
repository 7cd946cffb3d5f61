"""Label prompts by whether the model's own replies comply: what `compliance` learns from."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, cast

import typer

from demur.cli import _options as options
from demur.cli._session import load_engine, manifest, refuse_overwriting, run_rows, stderr
from demur.core import by_name, registry
from demur.core.errors import ConfigError
from demur.core.outcomes import Scorer
from demur.core.types import Sampling
from demur.datasets.rows import read_objects, read_rows
from demur.workflows.label import labelled_rows, require_outcomes

app = typer.Typer(add_completion=False)


@app.command()
def label(
    data: Annotated[Path, typer.Option("--data", help="JSON lines with prompts, plain or .gz.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines; resumes if interrupted.")],
    *,
    scorer: Annotated[
        str, typer.Option("--scorer", help="What judges the replies; see demur list.")
    ] = "agreement",
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    max_tokens: options.MaxTokens = 128,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Prompts answered side by side.")
    ] = 8,
) -> None:
    """Draw the model's own replies without a guard, and write each line with `complied`.

    Replies are greedy, and are not kept. Where the scorer cannot tell, the line has no `complied`.

    Example: demur label --data unsafe.jsonl --model path/to/model --out labelled.jsonl
    """
    judge = _scorer(scorer)
    refuse_overwriting(data, out)
    if not data.is_file():
        raise ConfigError(f"there is no file {data}")
    rows, objects = read_rows(data), dict(read_objects(data))
    engine = load_engine(model, dtype, max_batch=batch)
    sampling = Sampling(max_tokens=max_tokens)
    input_hash = hashlib.sha256(data.read_bytes()).hexdigest()
    depends_on = manifest(
        "label", input_hash, engine, None, scorer=scorer, max_tokens=max_tokens, batch=batch
    )
    run_rows(
        rows,
        lambda left: labelled_rows(
            engine, left, objects, scorer=judge, sampling=sampling, batch=batch
        ),
        output=out,
        depends_on=depends_on,
    )
    counts = Counter(json.loads(line).get("complied") for line in out.read_bytes().splitlines())
    stderr.print(
        f"{out}: {counts[True]} complied with, {counts[False]} refused, {counts[None]} unclear",
        highlight=False,
        markup=False,
    )


def _scorer(line: str) -> Scorer:
    """Return the scorer that the user named.

    Raises:
        ConfigError: There is no such scorer or field, or it does not give outcomes.
    """
    name, fields = by_name.parse(line, kind="scorers")
    try:
        scorer = cast(Scorer, registry.load("scorers", name)(**fields))
    except TypeError as error:
        raise ConfigError(f"--scorer {line}: {error}") from error
    require_outcomes(scorer)
    return scorer
