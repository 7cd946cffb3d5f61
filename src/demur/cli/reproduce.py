"""Put a paper's table beside the same detectors on a model at hand, with every known deviation."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from demur.cli import _options as options
from demur.cli._session import load_engine, stderr
from demur.cli._studies import Data, Limit, Out, Seeds, StudyRun, parameters_of
from demur.core.registry import load
from demur.datasets.demur_data import DemurData
from demur.studies._reproduction import Reproduction
from demur.workflows.fit import hold_out
from demur.workflows.paper_sets import PaperSets, gather
from demur.workflows.study_sets import StudySets, load_study_sets

app = typer.Typer(add_completion=False)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="lpm or mlpm.")],
    data: Data,
    out: Out,
    *,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    files: Annotated[
        Path | None,
        typer.Option("--files", help="Folder with a folder of publishers' files a data set."),
    ] = None,
    use_hub: Annotated[
        bool, typer.Option("--hub", help="Fetch from the publishers what --files does not hold.")
    ] = False,
    limit: Limit = 200,
    seeds: Seeds = 5,
) -> None:
    """Reproduce a paper: its main table, its layer study and its sample sizes.

    Sets that are not at hand are named in the result, as is everything that differs.

    Example: demur reproduce mlpm --data collection --model models/olmo2-1b --out mlpm
    """
    study = Reproduction(paper, model, "")  # type: ignore[arg-type]  # it refuses other papers
    layers, sizes = (load("studies", name) for name in ("layers", "sample_size"))
    most = limit or None
    collection = DemurData(Path(data)) if (Path(data) / "index.json").is_file() else None
    of_paper = gather(collection, files=files, use_hub=use_hub, limit=most)
    for label, why in of_paper.missing.items():
        stderr.print(f"missing: {label} ({why})", markup=False)
    sets, trained_on = _sets(data, of_paper, most)
    run = StudyRun.open(
        load_engine(model, dtype),
        sets,
        data=data,
        limit=most,
        num_seeds=seeds,
    )
    study = replace(
        study,
        model=run.engine.model_id.name,
        trained_on=trained_on,
        missing=of_paper.missing,
        notes=of_paper.notes,
    )
    run.run(study, out, parameters={"paper": paper})
    methods = ("prototypes",)
    label = "MLPM" if paper == "mlpm" else "LPM, last layer"
    parts = {
        "layers": layers(methods=methods),
        "sample_size": sizes(methods=(label, "LPM, middle layer", "layer_vote")),
    }
    for name, part in parts.items():
        run.run(part, out / name, parameters=parameters_of(part))


def _sets(data: str, of_paper: PaperSets, limit: int | None) -> tuple[StudySets, str]:
    """Return what is fitted and tested on, and the training prompts in words."""
    sets = load_study_sets(data, limit=limit)
    inside = sets.tests["test_id"]
    train, val, words = sets.train, sets.val, f"{len(sets.train)} prompts of {Path(data).name}"
    if of_paper.train:
        rest, inside = hold_out(of_paper.train, share=0.1, seed=0)
        train, val = hold_out(rest, share=0.1, seed=0)
        words = f"{len(train)} prompts of WildGuardMix"
    return StudySets(train, val, {"test_id": inside, **of_paper.tests}), words
