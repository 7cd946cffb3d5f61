"""The command of a benchmark that measures one model: its options, and where its results go."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gate import gate_of
from benchmarks.machine import describe_machine
from benchmarks.results_files import RESULTS, keep


def run(
    name: str,
    about: str | None,
    measure: Callable[..., Mapping[str, Any]],
    report: Callable[[Mapping[str, Any]], str],
    options: Mapping[str, tuple[Any, str]],
) -> None:
    """Measure the model that the command line names, write the results, and print them.

    Args:
        name: Of the benchmark, and of its results.
        about: What it is, for `--help`.
        measure: Takes the model, its gate and the options by name.
        report: Makes a page of what was measured.
        options: By name the default and what it means; one that is false by default is a flag.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", required=True)
    parser.add_argument("--detector", help="the gate; default: packaged, or fitted for the model")
    for option, (default, words) in options.items():
        flag = f"--{option.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true", help=words)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=words)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the report")
    given = vars(parser.parse_args())
    model = given["model"]
    asked = {option: given[option] for option in options}
    measured = measure(model, gate_of(model, given["detector"]), **asked)
    results = {"machine": describe_machine(), **measured}
    keep(name, results, report(results), folder=given["out"], prints_json=given["json"])
