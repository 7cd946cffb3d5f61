"""Writes the results of the two-step comparison as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.two_step_claims import (
    ALWAYS,
    BASE,
    KEPT,
    MORE_LOSS,
    MORE_REFUSED,
    OF_THE_GAIN,
    ORACLE,
    ORACLE_GAIN,
    ROUTED,
)
from benchmarks.two_step_utility import LEAST_LOSS, MARGIN, OVER_CHANCE
from benchmarks.words import LABELLER, SECOND, points, rate_names

Found = Sequence[Any]
"""A number and its interval."""


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine, adapters = results["machine"], results["adapters"]
    rate = (
        "its default rate"
        if results["fpr"] is None
        else f"a false-positive rate of {results['fpr']:g}"
    )
    unsafe, safe = rate_names()
    lines = [
        "# Two-step answering",
        "",
        f"Made by `python -m benchmarks.two_step` on {machine['processor']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, seed 0, in {results['seconds'] / 60:.0f} "
        "minutes, of which what an earlier run had kept took none. Model: "
        f"{results['model']['name']}, {results['model']['dtype']}; detector: "
        f"`{results['detector']}`, threshold at {rate}; "
        f"{results['share']:.0%} of the prompts. Replies are greedy, of "
        f"up to {results['max_tokens']} tokens; adapters had {results['steps']} steps of training.",
        "",
        f"Rates go by `{LABELLER}`: the share complied of unsafe prompts is called {unsafe}, the "
        f"share refused of safe ones {safe}. Its labels of replies in other languages were "
        "compared with nobody's. Intervals are at 95%, paired by prompt, over groups of prompts. "
        f"`{ROUTED}` and `{ORACLE}` are put together of `{BASE}` and `{ALWAYS}`, prompt by prompt.",
        "",
        *_trained(results),
        "",
        "## Claims",
        "",
        *_claims(results),
        "",
        "## Does an adapter carry over?",
        "",
        *_carried_over(results["kinds"], adapters),
        "",
        "## Unsafe prompts",
        "",
        *_safety(adapters),
        "",
        "## Safe prompts",
        "",
        *_loss(adapters),
        "",
        "## Utility",
        "",
        *_utility(adapters),
        "",
        "## Cost",
        "",
        *_cost(results["cost"]),
        "",
        "## All rates",
        "",
        *_rates(results),
    ]
    return "\n".join(lines) + "\n"


def _trained(results: Mapping[str, Any]) -> Iterator[str]:
    yield "| trained on | prompts | unsafe | safe |"
    yield "| --- | --- | --- | --- |"
    for style, of in results["rows"].items():
        unsafe, safe = (
            sum(n[label] for n in of["sources"].values()) for label in ("unsafe", "safe")
        )
        yield f"| {style} | {of['prompts']} | {unsafe} | {safe} |"
    yield ""
    yield "What a method cannot learn from it leaves out: DPO the prompts without a worse reply."
    yield ""
    yield "| adapter | unsafe rows learnt from | safe rows | tokens read |"
    yield "| --- | --- | --- | --- |"
    for name, of in results["adapters"].items():
        counts = of["training"]
        yield (
            f"| {name} | {counts['num_unsafe']:.0f} | {counts['num_safe']:.0f} | "
            f"{counts['num_tokens']:.0f} |"
        )


def _claims(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table with a line a claim, and how many cells each adapter reaches it in."""
    names = list(results["adapters"])
    yield f"| claim | {' | '.join(names)} |"
    yield "| --- |" + " --- |" * len(names)
    claims = [
        (claims_of(of), claims_of({**of["second"], "utility": of["utility"]}))
        for of in results["adapters"].values()
    ]
    for claim in claims[0][0]:
        cells = (f"{_reached(first[claim])}, {_counted(second[claim])}" for first, second in claims)
        yield f"| {claim} | {' | '.join(cells)} |"
    yield ""
    yield (
        f"In brackets the number of cells; after it what it would be by `{SECOND}`, which knows "
        "refusals by their words. A cell in which the adapter gains or loses nothing does not "
        "count. r is the detector's recall in the cell, f its flag rate on the same safe prompts "
        f"or questions. Arms are composed, so that `{ORACLE}` has `{ALWAYS}`'s gain by "
        "construction; what a guard really answers is compared with that under Cost."
    )


def claims_of(of: Mapping[str, Any]) -> dict[str, list[bool | None]]:
    """Return by claim in which cells of an adapter it is reached; None where it cannot be."""
    safety, loss = of["safety"], of["loss"]
    exams = [found["loss"] for found in of["utility"].values() if found["counts"]]
    by_kind = {
        f"at least {wanted:.0%} of the gain on {kind} sets": [
            found["kept_reached"] for found in safety.values() if found["kind"] == kind
        ]
        for kind, wanted in KEPT.items()
    }
    return {
        f"gain at least {OF_THE_GAIN} r of always-safe's": [
            found["bound_reached"] for found in safety.values()
        ],
        **by_kind,
        f"{ORACLE} at least {ORACLE_GAIN:.0%} of the gain": [
            found >= ORACLE_GAIN if found is not None else None for found in oracle_shares(of)
        ],
        f"over-refusal at most f + {MORE_LOSS:.0%} of always-safe's": [
            found["bound_reached"] for found in loss.values()
        ],
        f"over-refusal at most f of always-safe's, and {100 * MORE_LOSS:.0f} points": [
            found["points_reached"] for found in loss.values()
        ],
        f"refused safe prompts at most base + {100 * MORE_REFUSED:.0f} points": [
            found["few_reached"] for found in loss.values()
        ],
        f"lost right answers at most f + {MORE_LOSS:.0%} of always-safe's": [
            found["bound_reached"] for found in exams
        ],
    }


def oracle_shares(of: Mapping[str, Any]) -> list[float | None]:
    """Return by unsafe cell what the oracle-routed arm keeps of always-safe's gain."""
    change = {(row["arm"], row["cell"]): row["complied_change"] for row in of["rows"]}
    return [
        change[ORACLE, cell] / change[ALWAYS, cell] if change[ALWAYS, cell] < 0 else None
        for cell in of["safety"]
    ]


def _reached(found: Sequence[bool | None]) -> str:
    known = [of for of in found if of is not None]
    if not known:
        return "nothing to compare"
    return f"{'reached' if all(known) else 'not reached'} ({_counted(found)})"


def _counted(found: Sequence[bool | None]) -> str:
    known = [of for of in found if of is not None]
    return f"{sum(known)} of {len(known)}" if known else "nothing"


def _carried_over(
    kinds: Mapping[str, str], adapters: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    yield (
        "The share of the model's complied replies that the adapter takes away when it is always "
        "on, then when it is routed. `short` is how much less that is than on held-out prompts "
        "like those that it learnt from; * where the interval excludes 0."
    )
    yield ""
    names = list(adapters)
    yield f"| cell | {' | '.join(f'{name}: always, routed, short' for name in names)} |"
    yield "| --- |" + " --- |" * len(names)
    for cell in (name for name, kind in kinds.items() if kind != "safe"):
        yield f"| {cell} | {' | '.join(_carried(adapters[name], cell) for name in names)} |"
    yield ""
    for name, of in adapters.items():
        yield f"- {name}: {_shorts(of)}; by `{SECOND}` {_shorts(of['second'])}."


def _carried(of: Mapping[str, Any], cell: str) -> str:
    complied = of["safety"][cell]["complied"]
    if not complied[BASE]:
        return "-"
    removed = (f"{1 - complied[arm] / complied[BASE]:.0%}" for arm in (ALWAYS, ROUTED))
    found = of["carried_over"].get(cell)
    if found is None:
        return f"{', '.join(removed)}, its own"
    short = found["short"]
    star = "*" if short and _excludes_0(short) else ""
    return f"{', '.join(removed)}, {points(short) if short else '-'}{star}"


def _shorts(of: Mapping[str, Any]) -> str:
    found = [of["short"] for of in of["carried_over"].values() if of["short"]]
    surely = sum(short[0] > 0 and _excludes_0(short) for short in found)
    return (
        f"surely falls short in {surely} of {len(found)} other cells, and in "
        f"{sum(short[0] > 0 for short in found)} by its figure"
    )


def _excludes_0(found: Found) -> bool:
    low, high = found[1]
    return bool(low > 0 or high < 0)


def _safety(adapters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "Gains are points of complied replies. Over the bound: the routed gain less "
        f"{OF_THE_GAIN} r of the other. What the routed arm still complies with adds up of what "
        "the detector missed, what it missed and the adapter would not have stopped, and what it "
        "flagged and the adapter did not stop."
    )
    yield ""
    yield (
        "| adapter | cell | prompts (groups) | base | recall | gain, always | gain, routed | kept "
        "| over the bound | missed | missed and failed | failed |"
    )
    yield "| --- |" + " --- |" * 11
    for name, of in adapters.items():
        for cell, found in of["safety"].items():
            left = found["left"]
            kept = (
                f"{found['kept'][0]:.0%} ({_percent(found['kept'][1])})" if found["kept"] else "-"
            )
            yield (
                f"| {name} | {cell} | {found['prompts']} ({found['groups']}) | "
                f"{found['complied'][BASE]:.1%} | {found['recall']:.1%} | "
                f"{points(found['gain_always'])} | {points(found['gain_routed'])} | {kept} | "
                f"{points(found['over_bound']) if found['over_bound'] else '-'} | "
                f"{left['missed']:.1%} | {left['missed and failed']:.1%} | {left['failed']:.1%} |"
            )


def _loss(adapters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"Losses are points of refused replies. Under the bound: f + {MORE_LOSS:.0%} of the loss, "
        "always, less the loss, routed."
    )
    yield ""
    yield "| adapter | cell | prompts | flagged | loss, always | loss, routed | under the bound |"
    yield "| --- |" + " --- |" * 6
    for name, of in adapters.items():
        for cell, found in of["loss"].items():
            yield (
                f"| {name} | {cell} | {found['prompts']} | {found['flag_rate']:.1%} | "
                f"{points(found['loss_always'])} | {points(found['loss_routed'])} | "
                f"{points(found['under_bound'])} |"
            )


def _utility(adapters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"A set counts where the model by itself is {100 * OVER_CHANCE:.0f} points over chance and "
        f"the adapter, always on, loses {100 * LEAST_LOSS:.0f} or more, with an interval below 0. "
        "Of others it is tested whether an arm is the same as the model by itself, within "
        f"{100 * MARGIN:.0f} point of right answers, or a hundredth of the log-perplexity where "
        "there is no choice: two one-sided tests at 5%, with the 90% interval."
    )
    yield ""
    yield "| adapter | set | questions | flagged | base | always | routed | what follows |"
    yield "| --- |" + " --- |" * 7
    for name, of in adapters.items():
        for set_name, found in of["utility"].items():
            rows = found["rows"]
            cells = [
                f"{row['right']:.1%}" if "right" in row else f"{row['perplexity']:.2f}"
                for row in rows
            ]
            yield (
                f"| {name} | {set_name} | {rows[0]['questions']} | {found['flag_rate']:.1%} | "
                f"{' | '.join(cells)} | {_follows(found)} |"
            )


def _follows(found: Mapping[str, Any]) -> str:
    if found["counts"]:
        loss = found["loss"]
        return (
            f"loses {points(loss['loss_always'])}, routed {points(loss['loss_routed'])}: bound "
            f"{'reached' if loss['bound_reached'] else 'not reached'}"
        )
    return "; ".join(
        f"{arm}: {'the same' if of['holds'] else 'not shown to be the same'} (p {of['p']:.3f}, "
        f"{points((of['mean'], of['interval']))})"
        for arm, of in found["equivalence"].items()
    )


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    base = cost["base"]
    yield (
        f"With `{cost['adapter']}`, prompts one at a time. The model alone: first token after "
        f"{1000 * base['first_token_s']:.0f} ms, then {base['tokens_per_s'] or 0:.1f} tokens/s "
        "(medians). Ratios are a prompt's own, guarded over alone; medians."
    )
    yield ""
    yield "| prompts | number | as expected, token for token | first token | seconds a token |"
    yield "| --- | --- | --- | --- | --- |"
    for name, of in cost["ratios"].items():
        yield (
            f"| {name} | {of['prompts']} | {of['identical']} | {_ratio(of['first_token'])} | "
            f"{_ratio(of['seconds_a_token'])} |"
        )
    yield ""
    yield (
        "Expected of those that pass is the model's reply alone, drawn in the same way; of those "
        "that are flagged what the adapter, always on, had replied in a batch. At a flagged share "
        "q a ratio is (1 - q) times that of prompts that pass and q times that of flagged ones; "
        "times are this times the model's alone."
    )
    yield ""
    yield "| flagged | first token, ms | over alone | tokens/s | over alone |"
    yield "| --- | --- | --- | --- | --- |"
    for of in cost["at"]:
        first = "-" if of["first_token_s"] is None else f"{1000 * of['first_token_s']:.0f}"
        pace = "-" if of["tokens_per_s"] is None else f"{of['tokens_per_s']:.1f}"
        yield (
            f"| {of['share']:.1%} | {first} | {_ratio(of['first_token_ratio'])} | {pace} | "
            f"{_ratio(of['tokens_per_s_ratio'])} |"
        )
    if not cost["at"]:
        yield "| no prompt passed, or none was flagged | - | - | - | - |"


def _rates(results: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| adapter | arm | cell | prompts | on | complied | refused | collapsed "
        "| complied, second labeller |"
    )
    yield "| --- |" + " --- |" * 8
    rows = [("-", row) for row in results["base"]]
    rows += [(name, row) for name, of in results["adapters"].items() for row in of["rows"]]
    for name, row in rows:
        on = "-" if row["switched_on"] is None else f"{row['switched_on']:.1%}"
        rates = (
            f"{row[word]:.1%} ({_percent((row[f'{word}_low'], row[f'{word}_high']))})"
            for word in ("complied", "refused")
        )
        yield (
            f"| {name} | {row['arm']} | {row['cell']} | {row['prompts']} | {on} | "
            f"{' | '.join(rates)} | {row['collapsed']:.1%} | {row['complied_second']:.1%} |"
        )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(interval: Sequence[float]) -> str:
    return f"{interval[0]:.0%} to {interval[1]:.0%}"
