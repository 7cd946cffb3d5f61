"""Compares responders on the prompts of a suite, and writes what became of the replies."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

import demur
from demur.cli._session import load_engine, stderr
from demur.core.errors import ConfigError
from demur.core.registry import load
from demur.guard.responding import check_responder
from demur.studies._writing import write
from demur.workflows.machine import describe_machine
from demur.workflows.suites import load_suite

MOST_OF_A_ROLE = 150


def compare_responders(
    suite: str,
    responders: Sequence[str],
    detectors: Sequence[str] | None,
    models: Sequence[str] | None,
    *,
    dtype: str,
    limit: int,
    out: Path,
) -> None:
    """Draw the replies, label them, and write `results.json`, `table.md` and pictures.

    Args:
        suite: As `load_suite` takes it.
        responders: As `load_responder` takes them.
        detectors: The gate; None is the packaged one.
        models: The one that answers; None is the embedded one.
        dtype: Of the model.
        limit: Most prompts of a role; 0 is 150.
        out: Folder for the results.

    Raises:
        ConfigError: There is no such responder, or more than one model or detector.
    """
    for what, given in (("--model", models), ("--detector", detectors)):
        if given is not None and len(given) > 1:
            raise ConfigError(f"{what} is given {len(given)} times: --responders takes one")
    for line in responders:
        check_responder(line)
    chosen = load_suite(suite)
    study = load("studies", "responders")(
        responders=tuple(responders),
        detector=(detectors or ["pretrained"])[0],
        num_prompts=limit or MOST_OF_A_ROLE,
    )
    engine = load_engine((models or ["embedded"])[0], dtype)
    tests = {of.name: of.examples for of in chosen.sets}
    result = study.compare(engine, tests, report=lambda news: stderr.print(escape(news)))
    about = {
        "demur": demur.__version__,
        "model": engine.model_id.as_dict(),
        "suite": chosen.name,
        "parameters": study.described(),
        "machine": describe_machine(),
    }
    write(result, out, about=about)
    for finding in result.findings:
        print(f"- {finding}")
    stderr.print("written:", escape(str(out / "table.md")))
