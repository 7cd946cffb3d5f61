"""Runs the studies on one model, and writes their answers beside an index of what they found.

Each study has a folder with its numbers, its table and its pictures; the index is made of all the
folders that are there, so that studies can be run one at a time. Readings are kept on disk, and all
studies share them.

    DEMUR_DATA=FOLDER python -m benchmarks.studies [--model M] [--limit N] [--studies NAME,NAME]
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.build_pretrained import show_progress
from benchmarks.rows import SetCapturer, research_rows, test_suite
from benchmarks.studies_report import index
from demur.cli._studies import StudyRun, judges_of, parameters_of
from demur.core.examples import Example
from demur.core.registry import load
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.studies._study import Study
from demur.studies.prompting import Prompting
from demur.workflows.study_sets import INSIDE, StudySets, load_study_sets

RESULTS = Path(__file__).parent / "results" / "studies"
STUDIES = ("layers", "detectors", "aggregation", "sample_size", "transfer", "prompting")
"""Those that fit detectors themselves, in the order of their cost."""
OF_PACKAGED = ("robustness", "attacks")
"""Those that put the packaged detector to the test, which fits the embedded model only."""
LIMIT = 40
MOST_ASKED = 10
"""Prompts of a set that the model is asked about, ten wordings each."""
NUM_SEEDS = 5


def made(name: str, *, limit: int) -> Study:
    """Return a study with its defaults; the one that asks the model asks about fewer prompts."""
    if name == "prompting":
        return Prompting(max_prompts=min(limit, MOST_ASKED))
    study: Study = load("studies", name)()
    return study


def all_sizes(data: DemurData) -> StudySets:
    """Return the rows of the other benchmarks, and all of the balanced selection to fit on.

    That is over 6,000 prompts a class; the embedded model can take them all.
    """
    rows = research_rows(data, most=None)
    suite = test_suite()
    tests: dict[str, list[Example]] = {}
    for of in suite.sets:
        tests.setdefault(INSIDE if of.split == INSIDE else of.name, []).extend(of.examples)
    pools = {of.name: of.pool[0] for of in suite.sets if of.pool and of.split != INSIDE}
    return StudySets(rows.train, rows.val, tests, pools)


def run_study(name: str, run: StudyRun, out: Path, *, has_all_sizes: bool) -> None:
    """Run a study and write its folder.

    Args:
        name: Of the study.
        run: The model and the prompts.
        out: The model's folder.
        has_all_sizes: Fit the sample sizes on the rows of the other benchmarks.
    """
    if name == "sample_size" and has_all_sizes:
        capture = SetCapturer(run.engine, report=show_progress)
        sets = all_sizes(DemurData(Path(run.data)))
        opened = StudyRun.open(
            run.engine, sets, data=run.data, limit=None, num_seeds=len(run.seeds)
        )
        run = replace(opened, reader=capture.read)
    study = made(name, limit=run.limit or LIMIT)
    run.run(study, out / name, parameters=parameters_of(study))


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a name")
    parser.add_argument("--dtype", default="bfloat16", help="of the model")
    parser.add_argument("--limit", type=int, default=LIMIT, help="prompts of a source and label")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="draws of training prompts")
    parser.add_argument(
        "--studies",
        default=",".join(STUDIES),
        help=f"names with commas, also {' and '.join(OF_PACKAGED)}, of the packaged detector",
    )
    parser.add_argument("--all-sizes", action="store_true", help="sample sizes up to 6,000 a class")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for results")
    options = parser.parse_args()
    data = str(DemurData().folder)
    engine = TransformersEngine.load(options.model, dtype=options.dtype)
    sets = load_study_sets(data, limit=options.limit)
    names = options.studies.split(",")
    judged = ["pretrained"] if set(names) & set(OF_PACKAGED) else []
    run = StudyRun.open(
        engine,
        sets,
        data=data,
        limit=options.limit,
        num_seeds=options.seeds,
        judges=judges_of(engine, judged, fpr=None),
    )
    out = options.out / engine.model_id.name
    for name in names:
        run_study(name, run, out, has_all_sizes=options.all_sizes)
        (out / "README.md").write_text(index(out), encoding="utf-8")


if __name__ == "__main__":
    main()
