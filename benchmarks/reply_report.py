"""Writes the results of the reply-detector benchmark as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine, cost = results["machine"], results["cost"]
    updates = ", ".join(
        f"{ms:.3f} ms for {rows} at once" for rows, ms in cost["update_ms_by_rows"].items()
    )
    return "\n".join(
        [
            "# Reply detector",
            "",
            f"Made by `python -m benchmarks.reply_detector` on {machine['processor']}, "
            f"{machine['cores']} cores, torch {machine['versions']['torch']}, seed 0; model "
            f"{results['model']['name']} in {results['model']['dtype']}. The threshold is "
            f"calibrated for {results['fpr']:.0%} of ordinary replies ever being stopped, on "
            "validation replies. Rates are in percent, with 95% Wilson intervals; AUROC intervals "
            "are bootstraps over groups.",
            "",
            "## Unsafe replies against safe ones, after some tokens",
            "",
            "Safe replies are answers to safe prompts, and refusals and harmless answers to unsafe "
            "ones. Shorter replies count whole.",
            "",
            *_aurocs(results["auroc"], "all"),
            "",
            "Among the answers to unsafe prompts alone, where the prompt tells little:",
            "",
            *_aurocs(results["auroc"], "unsafe_prompts"),
            "",
            "## Stopped",
            "",
            *_stopped(results),
            "",
            "## Cost",
            "",
            f"- Streamed scores differ from those of the same text at once by at most "
            f"{results['streamed_minus_batch']:.1e}.",
            f"- Scoring a token takes {updates}.",
            f"- Decoding a token takes {cost['decoding_ms']:.1f} ms; scoring it is "
            f"{cost['share_of_decoding']:.2%} of that.",
            "",
        ]
    )


def _aurocs(by_scorer: Mapping[str, Any], part: str) -> list[str]:
    tokens = list(next(iter(by_scorer.values()))[part])
    heads = [*tokens[:-1], "all"]
    lines = [f"| after tokens | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for name, parts in by_scorer.items():
        cells = [
            _estimate(found["auroc"], found["interval"], "{:.3f}") for found in parts[part].values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _stopped(results: Mapping[str, Any]) -> list[str]:
    ordinary = results["ordinary"]
    longest = f"ordinary replies of about {ordinary['longest']['tokens']} tokens"
    rows = {
        "ordinary replies": ordinary["all"],
        longest: ordinary["longest"],
        **ordinary["sets"],
        **{f"labelled: {name}": found for name, found in results["labelled"].items()},
    }
    lines = [
        "| replies | number | stopped | median tokens until then |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        tokens = found["median_tokens_before"]
        until = "-" if tokens is None else f"{tokens:.0f}"
        lines.append(f"| {name} | {found['replies']} | {_percent(found)} | {until} |")
    return lines


def _percent(found: Mapping[str, Any]) -> str:
    if found["stopped"] is None:
        return "-"
    interval = [100 * end for end in found["interval"]]
    return _estimate(100 * found["stopped"], interval, "{:.1f}")


def _estimate(value: float, interval: Sequence[float] | None, form: str) -> str:
    if interval is None:
        return form.format(value)
    low, high = interval
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"
