"""Writes what the detector says on variants of its model as Markdown."""

from collections.abc import Mapping
from typing import Any


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine, prompts = results["machine"], results["prompts"]
    lines = [
        "# The packaged detector on variants of its model",
        "",
        f"Made by `python -m benchmarks.variants` on {machine['processor']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, in {results['seconds'] / 60:.0f} minutes. "
        f"The embedded model in {results['dtype']}; {prompts['ordinary']} ordinary prompts, "
        f"{prompts['look_alike']} look-alikes, {prompts['unsafe']} unsafe ones, at the shipped "
        "threshold. Wilson intervals at 95%.",
        "",
        "Moved: how far the scores of the fingerprint's texts moved at most, as a share of what is "
        "tolerated; over 1 the detector is refused until `demur adopt` or `demur fit` has looked "
        "at the variant. Ranks: Spearman's correlation of the scores with those of the model as "
        "fitted.",
        "",
        "| variant | moved | loads | equal verdicts | ranks | ordinary flagged | look-alikes | "
        "unsafe |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, results["variants"]),
    ]
    return "\n".join(lines) + "\n"


def _row(of: Mapping[str, Any]) -> str:
    rates = " | ".join(_rate(of["flagged"][name]) for name in ("ordinary", "look_alike", "unsafe"))
    loads = "yes" if of["is_accepted"] else "no"
    return (
        f"| {of['variant']} | {of['fingerprint_moved']:.2f} | {loads} "
        f"| {100 * of['equal_verdicts']:.1f}% | {of['rank_correlation']:.3f} | {rates} |"
    )


def _rate(of: Mapping[str, Any]) -> str:
    low, high = of["interval"]
    return f"{100 * of['share']:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
