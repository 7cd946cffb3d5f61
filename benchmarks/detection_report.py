"""Writes the results of the detection benchmark as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

Contenders = Mapping[str, Any]


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    contenders = results["contenders"]
    with_threshold = [name for name in contenders if name != "length"]
    machine = results["machine"]
    lines = [
        "# Detection",
        "",
        f"Made by `python -m benchmarks.detection` on {machine['processor']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, seed 0; model {results['model']['name']} in "
        f"{results['model']['dtype']}. Thresholds are calibrated for {results['fpr']:.0%} false "
        "positives on validation prompts. `shipped` learns from rows that may be shipped, "
        "`research` from the small selection of all sets; each TF-IDF from the same rows as its "
        "neighbour. Rates are in percent, with 95% Clopper-Pearson intervals; AUROC intervals are "
        "bootstraps over groups.",
        "",
        "## In distribution",
        "",
        "The sets of `shipped` are a part of these: the others are new to it.",
        "",
        *_in_distribution(contenders),
    ]
    for split, title in (
        ("test_ood", "Sources never trained on"),
        ("utility", "Ordinary prompts of benchmarks"),
        ("test_id", "In distribution, set by set"),
    ):
        lines += ["", f"## {title} (`{split}`)", ""]
        lines += _sets(contenders, with_threshold, split)
    lines += [
        "",
        "## By category",
        "",
        *_categories(contenders, with_threshold),
        "",
        "AUROC of an unsafe set is against `alpaca_eval`, for `multijail` and `catqa_vi` against "
        "`mgsm`; of a mixed set within it. jailbreakbench, jbb_artifacts and tense_attacks rest on "
        "the same 100 goals. `do_not_answer`, `aart`, `safety_tuned_llamas` and `tense_attacks` "
        "have soft labels.",
        "",
    ]
    return "\n".join(lines)


def _in_distribution(contenders: Contenders) -> list[str]:
    lines = [
        "| detector | rows | unsafe / safe | AUROC (95%) | caught at 1% false positives |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in contenders.items():
        for rows, of in found["in_distribution"].items():
            low, high = of["interval"]
            lines.append(
                f"| {name} | {rows} | {of['unsafe']} / {of['safe']} | {of['auroc']:.4f} "
                f"({low:.4f} to {high:.4f}) | {of['tpr_at_1_percent']:.1%} |"
            )
    return lines


def _sets(contenders: Contenders, names: Sequence[str], split: str) -> list[str]:
    lines = _head("set", names)
    for name in contenders[names[0]]["sets"][split]:
        rows = {contender: contenders[contender]["sets"][split][name] for contender in names}
        lines += _lines(name, rows)
    return lines


def _categories(contenders: Contenders, names: Sequence[str]) -> list[str]:
    lines = _head("set and category", names)
    for name, found in contenders[names[0]]["sets"]["test_ood"].items():
        for category in found.get("categories", {}):
            rows = {
                contender: contenders[contender]["sets"]["test_ood"][name]["categories"][category]
                for contender in names
            }
            lines += _lines(f"{name}: {category}", rows)
    return lines


def _head(first: str, names: Sequence[str]) -> list[str]:
    return [
        f"| {first} | prompts | " + " | ".join(f"{name}: rate, AUROC" for name in names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]


def _lines(title: str, rows: Mapping[str, Any]) -> list[str]:
    """Return a line for the unsafe prompts of a set and one for the safe ones."""
    first = next(iter(rows.values()))
    lines = []
    for count, field, verb in (
        ("unsafe", "caught", "unsafe, caught"),
        ("safe", "flagged_safe", "safe, flagged"),
    ):
        if first[count]:
            cells = [
                _cell(of[field], of["auroc"] if count == "unsafe" else None) for of in rows.values()
            ]
            lines.append(f"| {title} | {first[count]} {verb} | " + " | ".join(cells) + " |")
    return lines


def _cell(rate: Mapping[str, Any], auroc: float | None) -> str:
    low, high = rate["interval"]
    shown = f"{rate['rate'] * 100:.1f} ({low * 100:.1f} to {high * 100:.1f})"
    return shown if auroc is None else f"{shown}, {auroc:.3f}"
