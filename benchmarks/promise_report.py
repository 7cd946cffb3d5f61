"""Writes the results of the promise benchmark as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
KINDS = ("pooled", "each")
ALARMS = ("scores and flags", "flags")


def report(results: Found) -> str:
    """Return the whole report; results of sources may be missing."""
    lines = ["# The promise", "", *_planted(results["planted"])]
    if "sources" in results:
        lines += ["", *_sources(results["sources"])]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}%"


def _made_on(machine: Found, how: str) -> str:
    return (
        f"Made by `python -m benchmarks.promise{how}` on {machine['processor']}, "
        f"{machine['cores']} cores, seed 0."
    )


def _planted(found: Found) -> list[str]:
    thresholds = found["thresholds"]
    kept = [row for row in thresholds if "needed" not in row]
    holds = sum(row["holds"] for row in kept)
    alarms = found["alarms"]
    return [
        _made_on(found["machine"], " --planted"),
        "",
        "## Thresholds on planted scores",
        "",
        "Over 2,000 draws of a calibration set. A binomial threshold may exceed its bound in 5% of "
        "draws, 5.8% with what 2,000 draws leave open (one-sided 95%); a conformal one keeps the "
        "rate on average, and may exceed it in any share of draws. "
        f"{holds} of {len(kept)} rows hold.",
        "",
        *_table(
            ("traffic", "guarantee", "prompts", "rate", "true rate, mean", "over the bound in",
             "holds"),
            (_threshold_row(row) for row in thresholds),
        ),
        "",
        "## The drift alarm on planted scores",
        "",
        f"{alarms['streams']} streams of {alarms['length']} normal scores, each with a calibration "
        f"set of its own of 1,000; alpha is {alarms['alpha']:g}. `flags` expects 1% unsafe prompts "
        "and watches flags alone.",
        "",
        *_alarm_table("scores that moved", alarms["shifts"]),
    ]  # fmt: skip


def _threshold_row(row: Found) -> Sequence[str]:
    asked = (row["traffic"], row["guarantee"], str(row["prompts"]), _percent(row["fpr"]))
    if "needed" in row:
        return (*asked, f"refused: needs {row['needed']}", "", "")
    rates = (_percent(row["mean_rate"]), _percent(row["share_over_bound"]))
    return (*asked, *rates, "yes" if row["holds"] else "no")


def _alarm_table(first: str, shifts: Mapping[str, Found]) -> list[str]:
    return _table(
        (first, *(f"{name}: raised in, after prompts (median)" for name in ALARMS)),
        ((shift, *(_alarm(found[name]) for name in ALARMS)) for shift, found in shifts.items()),
    )


def _alarm(found: Found) -> str:
    after = found["median_prompts"]
    return _percent(found["raised"]) + ("" if after is None else f", {after:.0f}")


def _sources(found: Found) -> list[str]:
    fpr, alarms = found["fpr"], found["alarms"]
    return [
        "## Sources that were left out",
        "",
        _made_on(found["machine"], ""),
        "",
        f"Thresholds for {_percent(fpr)} false positives, calibrated on the benign prompts of all "
        "other sources: `pooled` keeps the rate in all of them together, `each` in every one by "
        "itself that has groups enough. A source is *over* if its interval (one-sided 95% at each "
        f"end) lies over the rate. Caught: of {found['num_unsafe']} unsafe prompts of all sets.",
        "",
        *(_worst(found["left_out"], kind) for kind in KINDS),
        "",
        *_left_out(found["left_out"]),
        "",
        "## Prompts of one's own",
        "",
        "Thresholds calibrated on groups of the source itself, tested on the rest of it, over 100 "
        "draws. Where so few prompts cannot promise the rate, it is the lowest that they can. In "
        "each cell: rate, share of draws over the promise beyond chance, unsafe prompts caught.",
        "",
        *_repaired(found["own_prompts"]),
        "",
        *_own(found["own_prompts"]),
        "",
        "## The drift alarm on sources that were left out",
        "",
        f"Set up on all other sources, {alarms['streams']} shuffled streams each of at most 1,000 "
        f"groups; alpha is {alarms['alpha']:g}. The first line is traffic like the calibration "
        f"set, {alarms['halves']} streams: false alarms.",
        "",
        *_noticed(found["left_out"], alarms["left_out"]),
        "",
        *_alarm_table(
            "source", {"(all, half against half)": alarms["false_alarms"], **alarms["left_out"]}
        ),
    ]


def _noticed(left_out: Mapping[str, Found], alarms: Mapping[str, Found]) -> list[str]:
    over = [name for name, row in left_out.items() if row["pooled"]["is_proven_over"]]
    lines = []
    for sort in ALARMS:
        num_noticed = sum(alarms[name][sort]["raised"] > 0.5 for name in over)
        lines.append(
            f"- `{sort}`: raised in more than half of the streams on {num_noticed} of {len(over)} "
            "sources that the `pooled` threshold is over on"
        )
    return lines


def _worst(left_out: Mapping[str, Found], kind: str) -> str:
    rows = {name: row[kind] for name, row in left_out.items() if kind in row}
    if not rows:
        return f"- `{kind}`: no source has groups enough"
    over = [name for name, row in rows.items() if row["is_proven_over"]]
    worst = max(rows, key=lambda name: float(rows[name]["rate"]))
    return (
        f"- `{kind}`: {len(over)} of {len(rows)} sources are over; the worst is {worst} with "
        f"{_percent(rows[worst]['rate'])}"
    )


def _left_out(left_out: Mapping[str, Found]) -> list[str]:
    rows = []
    for name, row in left_out.items():
        cells = [name, str(row["groups"])]
        for kind in KINDS:
            found = row.get(kind)
            if found is None:
                cells += ["", ""]
                continue
            low, high = found["interval"]
            over = " **over**" if found["is_proven_over"] else ""
            cells += [
                f"{_percent(found['rate'])} ({_percent(low)} to {_percent(high)}){over}",
                _percent(found["caught"]),
            ]
        rows.append(cells)
    head = ("source", "groups", "pooled: flagged", "caught", "each: flagged", "caught")
    return _table(head, rows)


def _repaired(own: Mapping[str, Mapping[str, Found]]) -> list[str]:
    lines = []
    for size in sorted({size for row in own.values() for size in row}, key=int):
        of_size = [row[size] for row in own.values() if size in row]
        over = sum(cell["mean_rate"] > cell["promised"] for cell in of_size)
        most = max(cell["share_proven_over"] for cell in of_size)
        lines.append(
            f"- {size} prompts: on average over the promise on {over} of {len(of_size)} sources; "
            f"beyond chance in at most {_percent(most)} of a source's draws"
        )
    return lines


def _own(own: Mapping[str, Mapping[str, Found]]) -> list[str]:
    sizes = sorted({size for row in own.values() for size in row}, key=int)
    promised = {size: row[size]["promised"] for row in own.values() for size in row}
    return _table(
        ("source", *(f"{size} prompts, for {_percent(promised[size])}" for size in sizes)),
        ((name, *(_own_cell(row.get(size)) for size in sizes)) for name, row in own.items()),
    )


def _own_cell(found: Found | None) -> str:
    if found is None:
        return "too few groups"
    parts = (found["mean_rate"], found["share_proven_over"], found["mean_caught"])
    return ", ".join(_percent(part) for part in parts)
