"""Answer a question about detectors with a table, plots and findings."""

from dataclasses import fields
from typing import Annotated

import typer

from demur.cli import _options as options
from demur.cli._parameters import parameters as parse_parameters
from demur.cli._session import load_engine
from demur.cli._studies import Data, Limit, Out, Seeds, StudyRun, judges_of, made, parameters_of
from demur.core.errors import ConfigError
from demur.core.registry import load
from demur.studies._judges import JudgedStudy
from demur.workflows.study_sets import load_study_sets

app = typer.Typer(add_completion=False)


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="See demur list.")],
    data: Data,
    out: Out,
    *,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    limit: Limit = 200,
    seeds: Seeds = 5,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Of the study, as NAME=VALUE; may be repeated."),
    ] = None,
    detectors: options.Detectors = None,
    fpr: options.Fpr = None,
) -> None:
    """Run a study; the states of its prompts are read once and kept for the next one.

    Example: demur study layers --data collection --out layers

    Example: demur study sample-size --data labelled.jsonl -p 'sizes=[10,100]' --out sizes

    Example: demur study attacks --data collection --detector my-detector --out attacks
    """
    method = load("studies", name)
    known = [field.name for field in fields(method)]
    chosen = made(method, parse_parameters(parameter or [], known))
    is_of_fitted = isinstance(chosen, JudgedStudy)
    if (detectors or fpr is not None) and not is_of_fitted:
        raise ConfigError(
            f"study {name!r} fits detectors itself: --detector and --fpr are for robustness and "
            "attacks"
        )
    most = limit or None
    sets = load_study_sets(data, limit=most)
    engine = load_engine(model, dtype)
    judges = judges_of(engine, detectors or ["pretrained"], fpr=fpr) if is_of_fitted else ()
    run = StudyRun.open(engine, sets, data=data, limit=most, num_seeds=seeds, judges=judges)
    run.run(chosen, out, parameters=parameters_of(chosen))
