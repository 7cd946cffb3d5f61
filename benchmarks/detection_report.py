"""Writes the results of the detection benchmark as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.detection_goals import GOALS

MEANS = (
    ("test_id", "english", "in distribution, English"),
    ("test_ood", "english", "other sources, English"),
    ("test_ood", "other", "other sources, other languages"),
)
"""Splits and languages whose means over sets are shown, in words."""
CONTROLS = frozenset({"length", "always_flag", "shuffled_labels"})


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine = results["machine"]
    lines = [
        "# Detection",
        "",
        f"Made by `python -m benchmarks.detection` on {machine['processor']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, seed 0; model {results['model']['name']} in "
        f"{results['model']['dtype']}. Thresholds are calibrated for {results['fpr']:.1%} false "
        "positives on validation prompts. `shipped` learns from rows that may be shipped, "
        "`research` from rows of all sets; the rivals of each from the same rows. In brackets: 95% "
        "intervals, bootstraps over groups, those of differences paired.",
        "",
        "The sets of `test_ood` and `utility` have been looked at while demur was developed: they "
        "count as development sets. What was tried, and how far the choice lies from the best in "
        "hindsight, stands in `selection.md`.",
    ]
    for name, found in results["comparisons"].items():
        lines += ["", f"## {name.capitalize()}", "", *_goals(found), ""]
        lines += [*_means(found), "", *_realised(found), "", *_sets(found)]
    return "\n".join([*lines, ""])


def _goals(found: Mapping[str, Any]) -> list[str]:
    rows = found["rows"]
    names = list(found["goals"])
    lines = [
        f"Fitted on {rows['train']:,} prompts, calibrated on {rows['val']:,}.",
        "",
        "| at the frozen threshold | asked | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for goal, (words, direction, limit) in GOALS.items():
        cells = [f"{found['goals'][name]['values'][goal]:.3f}" for name in names]
        lines.append(f"| {words} | {direction} {limit:.2f} | " + " | ".join(cells) + " |")
    return lines


def _means(found: Mapping[str, Any]) -> list[str]:
    scorers = [of for of in found["evaluation"]["scorers"] if of["name"] != "always_flag"]
    lines = [
        "AUROC, mean over sets, each cluster once; behind it, how far it is from the first.",
        "",
        "| | " + " | ".join(of["name"] for of in scorers) + " |",
        "| --- |" + " --- |" * len(scorers),
    ]
    for split, languages, words in MEANS:
        cells = [_mean(of, split, languages) for of in scorers]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return lines


def _mean(scorer: Mapping[str, Any], split: str, languages: str) -> str:
    for of in scorer["averages"]:
        if (of["split"], of["languages"], of["measure"]) == (split, languages, "auroc"):
            shown = _estimate(of["mean"])
            return f"{shown}; {_signed(of['difference'])}" if of["difference"] else shown
    return "-"


def _realised(found: Mapping[str, Any]) -> list[str]:
    realised = found["realised"]
    lines = [
        f"Caught at the threshold that flags {realised['fpr']:.0%} of the utility sets (the one "
        f"place where test prompts set a threshold), mean over the {len(realised['sets'])} English "
        "sets with unsafe prompts:",
        "",
        "| detector | caught | behind the first |",
        "| --- | --- | --- |",
    ]
    for number, (name, of) in enumerate(realised["contenders"].items()):
        shown = _estimate({"value": of["recall"], "interval": of["interval"]})
        behind = _estimate({"value": of["behind"], "interval": of["behind_interval"]})
        lines.append(f"| {name} | {shown} | {behind if number else '-'} |")
    return lines


def _sets(found: Mapping[str, Any]) -> list[str]:
    scorers = [of for of in found["evaluation"]["scorers"] if of["name"] not in CONTROLS]
    lines = [
        "Each set at the frozen threshold: caught and AUROC of unsafe, flagged of safe prompts.",
        "",
        "| set | prompts | " + " | ".join(of["name"] for of in scorers) + " |",
        "| --- | --- |" + " --- |" * len(scorers),
    ]
    for place, first in enumerate(scorers[0]["sets"]):
        own = [of["sets"][place] for of in scorers]
        title = f"{first['split']}: {first['name']}"
        if first["num_unsafe"]:
            cells = [f"{_rate(of, 'recall')}, {of['auroc']['value']:.3f}" for of in own]
            lines.append(_line(title, f"{first['num_unsafe']} unsafe", cells))
        if first["num_safe"]:
            cells = [_rate(of, "flagged_safe") for of in own]
            lines.append(_line(title, f"{first['num_safe']} safe", cells))
    return lines


def _line(title: str, prompts: str, cells: Sequence[str]) -> str:
    return f"| {title} | {prompts} | " + " | ".join(cells) + " |"


def _rate(of_set: Mapping[str, Any], field: str) -> str:
    rate = of_set["at_thresholds"][0][field]
    low, high = rate["interval"]
    return f"{rate['value']:.0%} ({low:.0%} to {high:.0%})"


def _estimate(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} ({low:.3f} to {high:.3f})"


def _signed(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:+.3f} ({low:+.3f} to {high:+.3f})"
