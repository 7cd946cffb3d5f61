"""What the commands that run studies share: prompts, readings from disk, and what is shown."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import demur
from demur.cli._session import capture_progress, stderr
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.engines.transformers import TransformersEngine
from demur.guard.loading import load_detector
from demur.studies._study import Judge, Reader, Study, StudyInputs, StudyResult
from demur.studies._writing import write
from demur.workflows.capture import Capturer
from demur.workflows.machine import describe_machine
from demur.workflows.study_reader import StudyReader
from demur.workflows.study_sets import StudySets

Data = Annotated[
    str,
    typer.Option(
        "--data", help="The collection's folder, labelled JSON lines or a folder of them, starter."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for results.json, table.md, pictures.")]
Limit = Annotated[
    int, typer.Option("--limit", min=0, help="Most prompts of a source, label and role; 0: all.")
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Draws, where a study repeats any.")]


@dataclass(frozen=True)
class StudyRun:
    """A model, and the prompts that it can take."""

    engine: TransformersEngine
    sets: StudySets
    data: str
    limit: int | None
    seeds: tuple[int, ...]
    judges: tuple[Judge, ...] = ()
    reader: Reader | None = None
    """Reads prompts; None reads whole sets, with progress."""

    @classmethod
    def open(
        cls,
        engine: TransformersEngine,
        sets: StudySets,
        *,
        data: str,
        limit: int | None,
        num_seeds: int,
        judges: tuple[Judge, ...] = (),
    ) -> "StudyRun":
        """Leave out what the model cannot take, with a note on how many that are."""
        kept = sets.keeping(partial(_fits, engine))
        left_out = _count(sets) - _count(kept)
        if left_out:
            stderr.print(f"left out {left_out} prompts that the model cannot take")
        return cls(engine, kept, data, limit, tuple(range(num_seeds)), judges)

    def inputs(self) -> StudyInputs:
        """Return what a study works on."""
        return StudyInputs(
            read=self.reader
            or partial(_read, StudyReader(Capturer(self.engine.loaded), self.sets.all)),
            num_blocks=len(self.engine.loaded.parts.blocks),
            train=self.sets.train,
            val=self.sets.val,
            tests=self.sets.tests,
            pools=self.sets.pools,
            seeds=self.seeds,
            report=lambda news: stderr.print(escape(news)),
            engine=self.engine,
            judges=self.judges,
        )

    def about(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """Return what a result depends on, and the machine."""
        return {
            "demur": demur.__version__,
            "model": self.engine.model_id.as_dict(),
            "data": Path(self.data).name,
            "limit": self.limit,
            "seeds": list(self.seeds),
            "detectors": [[judge.name, judge.threshold] for judge in self.judges],
            "prompts": {
                "train": len(self.sets.train),
                "val": len(self.sets.val),
                **{name: len(examples) for name, examples in self.sets.tests.items()},
            },
            "parameters": dict(parameters),
            "machine": describe_machine(),
        }

    def run(self, study: Study, out: Path, *, parameters: Mapping[str, object]) -> StudyResult:
        """Run a study, write its folder and print what it found."""
        started = time.perf_counter()
        result = study.run(self.inputs())
        seconds = round(time.perf_counter() - started, 1)
        write(result, out, about={**self.about(parameters), "seconds": seconds})
        print(f"{result.title}: {result.question}")
        for finding in result.findings:
            print(f"- {finding}")
        stderr.print("written:", escape(str(out / "table.md")))
        return result


def made(study: type[Study], given: Mapping[str, Any]) -> Study:
    """Return a study with parameters, each of the kind of its default.

    Raises:
        ConfigError: A value is of another kind.
    """
    values: dict[str, Any] = {}
    for field in fields(study):  # type: ignore[arg-type]  # studies are dataclasses
        if field.name not in given:
            continue
        value = given[field.name]
        values[field.name] = tuple(value) if isinstance(value, list) else value
        expected = type(field.default) if field.default is not None else int
        if not isinstance(values[field.name], expected):
            kind = "a list" if expected is tuple else expected.__name__
            raise ConfigError(f"{field.name} is {value!r}: expected {kind}, as JSON")
    return study(**values)


def judges_of(
    engine: TransformersEngine, detectors: Sequence[str], *, fpr: float | None
) -> tuple[Judge, ...]:
    """Load fitted detectors for an engine's model, with their thresholds.

    Raises:
        ConfigError: There is no such detector, or it has no threshold for this rate.
        ModelMismatchError: One was made for another model.
    """
    loaded = (load_detector(detector, engine, fpr=fpr) for detector in detectors)
    return tuple(Judge(of.name, of.detector, of.threshold) for of in loaded)


def parameters_of(study: Study) -> dict[str, object]:
    """Return the fields of a study."""
    return asdict(study)  # type: ignore[call-overload,no-any-return]  # studies are dataclasses


def _read(reader: StudyReader, examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
    with capture_progress() as report:
        return reader.read(examples, reads, report=report)


def _fits(engine: TransformersEngine, example: Example) -> bool:
    """Tell whether the model can take a prompt."""
    try:
        engine.render(example.chat)
    except DataError:
        return False
    return True


def _count(sets: StudySets) -> int:
    return sum(map(len, sets.all))
