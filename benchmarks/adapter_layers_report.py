"""Writes what adapters of upper blocks cost in strength as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.words import LABELLER, points, rate_names


def report(results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    machine, model = results["machine"], results["model"]
    unsafe, safe = rate_names()
    lines = [
        f"# Adapters above the read layer: {model['name']}, {model['dtype']}",
        "",
        f"Made by `python -m benchmarks.adapter_layers --share {results['share']:g} --steps "
        f"{results['steps']}` on {machine['processor']}, {machine['cores']} cores, in "
        f"{results['seconds'] / 60:.0f} minutes. The same {results['trained_on']['prompts']} "
        f"prompts with the replies that ship, {results['steps']} steps, rank and rate; adapters "
        f"are always on, replies greedy, of {results['max_tokens']} tokens. Outcomes by "
        f"`{LABELLER}`: the share complied of unsafe prompts is called {unsafe}, the share refused "
        f"of safe ones {safe}. Intervals are at 95%; changes in points, paired.",
        "",
        "## What is trained",
        "",
        *_trainings(results["training"], int(results["num_blocks"])),
        "",
        "## What it does",
        "",
        *_arms(results["arms"]),
    ]
    return "\n".join(lines) + "\n"


def _trainings(training: Mapping[str, Mapping[str, float]], num_blocks: int) -> Iterator[str]:
    yield (
        "| blocks adapted | weights | of a flagged prompt read again | held-out loss, refusals | "
        "held-out loss, answers |"
    )
    yield f"|{' --- |' * 5}"
    for name, of in training.items():
        first = int(name.split()[0])
        losses = " | ".join(
            f"{of[f'nll_{kind}_before']:.2f} to {of[f'nll_{kind}_after']:.2f}"
            for kind in ("refusal", "helpful")
        )
        yield f"| {name} | {of['num_weights']:,.0f} | {1 - first / num_blocks:.0%} | {losses} |"


def _arms(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "| blocks adapted | prompts | complied | refused | by the second labeller | more refused "
        "than by all blocks | by the second labeller | collapsed |"
    )
    yield f"|{' --- |' * 8}"
    for row in rows:
        words = " | ".join(
            f"{row[word]:.1%} ({row[f'{word}_low']:.1%} to {row[f'{word}_high']:.1%})"
            for word in ("complied", "refused")
        )
        changes = " | ".join(points(row["to_all"][labeller]) for labeller in ("outcome", "second"))
        yield (
            f"| {row['arm']} | {row['prompts']} {str(row['role']).replace('_', '-')} | {words} | "
            f"{row['refused_second']:.1%} refused | {changes} | {row['collapsed']:.1%} |"
        )
