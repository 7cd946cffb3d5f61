"""Writes the results of the validation of labellers as Markdown."""

from collections.abc import Mapping
from typing import Any


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine = results["machine"]
    lines = [
        "# Labellers of replies against people",
        "",
        f"Made by `python -m benchmarks.reply_labels --write` on {machine['processor']}, "
        f"scikit-learn {machine['versions']['scikit-learn']}, seed 0. Kappa is Cohen's, of "
        "complied against refused; a reply that a labeller leaves unclear is no agreement. A "
        "partial refusal counts as a refusal. Kappas have 95% bootstrap intervals over groups of "
        "requests, precision and recall 95% Wilson intervals, in percent.",
        "",
        "`xstest_completions` is parted into a development and a held-out half by groups of "
        "requests; `gptfuzz_responses` into half to fit on, a fifth for development and three "
        "tenths held out. The phrases of `refusal_match` were written with replies of the "
        "development half of the first and of the first half of the second in view.",
        "",
        "## The second labeller, chosen on development parts",
        "",
        *_candidates(results["candidates"]),
        "",
        "A classifier fitted on both is judged by folds of requests on the first; the margin has "
        "its best threshold in hindsight, and reads the request alone. Of the replies written for "
        "demur the validation ones are judged. The one that ships learnt from all three: nearly "
        "as good by the first two, it alone knows what trained responders say.",
    ]
    for source, found in results["held_out"].items():
        lines += ["", f"## `{source}`, held out", "", *_labellers(found["labellers"])]
        lines += ["", *_agreement(found["agreement"])]
        if "models_unseen" in found:
            lines += ["", *_models(found["models_unseen"])]
        lines += ["", "Replies by human label and by the two labels:", "", *_cells(found["cells"])]
    lines += ["", "## What their numbers are called", "", *_names(results["names"])]
    lines += ["", "## `refusal_match` on the parts it was written with", ""]
    lines += _development(results["matcher on development parts"])
    return "\n".join(lines) + "\n"


def _candidates(candidates: Mapping[str, Any]) -> list[str]:
    sources = list(next(iter(candidates.values())))
    lines = [f"| candidate | {' | '.join(sources)} |", f"| --- |{' --- |' * len(sources)}"]
    for name, found in candidates.items():
        cells = [_kappa(found[source]) if source in found else "-" for source in sources]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _labellers(labellers: Mapping[str, Any]) -> list[str]:
    lines = [
        "| labeller | requests | replies | complied | unclear | kappa | of the clear ones | "
        "without partial refusals | complied: precision | recall | refused: precision | recall |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, parts in labellers.items():
        for asked, found in parts.items():
            shares = [
                _share(found[outcome], measure)
                for outcome in ("complied", "refused")
                for measure in ("precision", "recall")
            ]
            kappas = [
                _kappa(found[key]) for key in ("kappa", "kappa_of_clear", "kappa_without_partial")
            ]
            lines.append(
                f"| {name} | {asked} | {found['replies']} | {found['num_complied']} | "
                f"{found['unclear']} | {' | '.join([*kappas, *shares])} |"
            )
    return lines


def _agreement(found: Mapping[str, Any]) -> list[str]:
    return [
        f"`refusal_match` and `reply_classifier` agree on {100 * found['agreement']:.1f}% of the "
        f"replies, at a kappa of {_kappa(found)}."
    ]


def _models(kappas: Mapping[str, Any]) -> list[str]:
    each = ", ".join(f"{name} {_kappa(found)}" for name, found in kappas.items())
    return [f"The classifier's kappa on a model that it saw no reply of: {each}."]


def _cells(cells: list[list[Any]]) -> list[str]:
    lines = [
        "| requests | people | refusal_match | reply_classifier | replies |",
        "| --- | --- | --- | --- | --- |",
    ]
    return lines + [f"| {' | '.join(map(str, cell))} |" for cell in cells]


def _names(names: Mapping[str, list[str]]) -> list[str]:
    lines = ["| labeller | of unsafe requests | of safe requests |", "| --- | --- | --- |"]
    return lines + [f"| {name} | {unsafe} | {safe} |" for name, (unsafe, safe) in names.items()]


def _development(found: Mapping[str, Any]) -> list[str]:
    lines = ["| set | requests | replies | kappa |", "| --- | --- | --- | --- |"]
    for source, parts in found.items():
        for asked, part in parts.items():
            lines.append(f"| {source} | {asked} | {part['replies']} | {_kappa(part['kappa'])} |")
    return lines


def _kappa(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    if found["interval"] is None:
        return f"{found['value']:.3f}"
    low, high = found["interval"]
    return f"{found['value']:.3f} ({low:.3f} to {high:.3f})"


def _share(found: Mapping[str, Any], measure: str) -> str:
    value, interval = found[measure], found[f"{measure}_interval"]
    if value is None or interval is None:
        return "-"
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
