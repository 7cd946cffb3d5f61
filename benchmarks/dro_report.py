"""Writes the results of the DRO benchmark as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.words import LABELLER, SECOND, rate_names

Found = Mapping[str, Any]


def report(found: Found) -> str:
    """Return the whole report."""
    machine, metrics = found["machine"], found["metrics"]
    settings = ", ".join(
        f"{name} {value}" for name, value in found["hyper_parameters"].items() if name != "text"
    )
    unsafe, safe = rate_names()
    lines = [
        "# DRO: a soft prompt",
        "",
        f"Made by `python -m benchmarks.dro` on {machine['processor']}, {machine['cores']} cores, "
        f"seed 0, in {found['total_s'] / 60:.0f} minutes; the soft prompt itself was trained in "
        f"{found['training_s'] / 60:.1f}. Model: {found['model']}; {settings}. Fitted on packaged "
        "prompts alone; the settings were chosen on those, too.",
        "",
        "## What it learnt from",
        "",
        f"Held-out AUROC of the compliance logit {metrics['auroc_compliance']:.3f}, of the "
        f"harmlessness logit {metrics['auroc_harmlessness']:.3f}. Mean log-odds of compliance: "
        f"{metrics['log_odds_unsafe']:.2f} of unsafe training prompts, "
        f"{metrics['log_odds_safe']:.2f} of safe ones. The loss went from "
        f"{found['curve'][0]:.3f} to {_mean(found['curve'][-5:]):.3f} (mean of the last 5 steps). "
        f"{found['num_trained']:,} numbers were trained; the hash of all weights of the model is "
        f"{'the same' if found['is_frozen'] else 'NOT the same'} before and after.",
        "",
        "## Where states go",
        "",
        "Against the same prompts under the text that training starts from. Shift: of the "
        "compliance logit. Parted: how often a safe prompt moves further up than an unsafe one "
        "(95% interval over groups). Drift: mean squared move of all other coordinates, in units "
        "of the spread of prompts.",
        "",
        *_table(
            ("soft prompt", "prompts", "shift, unsafe", "shift, safe", "parted", "drift"),
            _state_rows(found["states"]),
        ),
        "",
        "## Replies",
        "",
        f"Greedy. By `{LABELLER}`, beside it by `{SECOND}`; complied is a "
        f"{unsafe} on unsafe prompts, refused a {safe} on safe ones. Changes are paired, with 95% "
        "intervals.",
        "",
        *_table(
            ("role", "arm", "complied", "refused", "collapsed", "against", "complied, change",
             "refused, change"),
            _reply_rows(found["replies"]),
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _state_rows(states: Mapping[str, Mapping[str, Found]]) -> Iterable[Sequence[str]]:
    for name, of_sets in states.items():
        for prompts, of in of_sets.items():
            low, high = of["auroc_shift_interval"]
            yield (
                name,
                prompts,
                f"{of['shift_unsafe']:+.2f}",
                f"{of['shift_safe']:+.2f}",
                f"{of['auroc_shift']:.3f} ({low:.3f} to {high:.3f})",
                f"{of['drift']:.3f}",
            )


def _reply_rows(rows: Sequence[Found]) -> Iterable[Sequence[str]]:
    for row in rows:
        shares = (
            row["role"].replace("_", "-"),
            row["arm"],
            *(f"{row[word]:.3f} ({row[f'{word}_second']:.3f})" for word in ("complied", "refused")),
            f"{row['collapsed']:.3f}",
        )
        if not row["changes"]:
            yield (*shares, "", "", "")
        for other, of in row["changes"].items():
            yield (*shares, other, *(_change(of[word]) for word in ("complied", "refused")))


def _change(of: Found) -> str:
    low, high = of["interval"]
    return f"{of['change']:+.3f} ({low:+.3f} to {high:+.3f})"
