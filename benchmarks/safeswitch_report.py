"""Writes the results of the SafeSwitch benchmark as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.words import LABELLER, rate_names


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine = results["machine"]
    unsafe, safe = rate_names()
    lines = [
        "# SafeSwitch",
        "",
        f"Made by `python -m benchmarks.safeswitch` on {machine['processor']}, {machine['cores']} "
        f"cores, torch {machine['versions']['torch']}, seed 0; replies are greedy, of up to "
        f"{results['max_tokens']} tokens. Rates go by `{LABELLER}`: the share complied of unsafe "
        f"prompts is called {unsafe}, the share refused of safe ones {safe}. Intervals are at 95%, "
        "over groups of prompts. Every gate has the threshold that flags "
        f"{results['fpr']:.1%} of demur's own benign validation prompts with 95% confidence; stage "
        f"two is asked where stage one scores in the highest {results['reach']:.0%} of them.",
        "",
        "Stage two learns from replies on which `reply_classifier` and `refusal_match` agree, and "
        "is measured on such.",
    ]
    for found in results["models"]:
        lines += ["", f"## {found['model']['name']}, {found['model']['dtype']}", ""]
        lines += [f"{found['share']:.0%} of the prompts of `benchmarks.arms`.", ""]
        lines += [*_stage_two(found), *_head(found), *_arms(found), *_gates(found), *_front(found)]
    return "\n".join(lines) + "\n"


def _stage_two(found: Mapping[str, Any]) -> Iterator[str]:
    own = found["own_replies"]["tested"]
    yield (
        f"By itself the model complied with {own['complied']} and refused {own['refused']} of "
        f"{own['prompts']} unsafe prompts where both labellers agree."
    )
    for name, of in found["stage_two"].items():
        prompts = of["prompts"]
        yield ""
        yield (
            f"Stage two, {name}: AUROC of {prompts['complied']} unsafe prompts that were complied "
            f"with against {prompts['refused']} that were refused, each scored by a fit without "
            "its fold; no group of prompts stands in two folds."
        )
        yield ""
        yield "| stage two | tokens of the reply | AUROC | over no token, paired |"
        yield "| --- | --- | --- | --- |"
        for row in of["auroc"]:
            gain = "-" if row["k"] == 0 else _interval(row["gain"], "{:+.3f}")
            yield (
                f"| {row['head']} | {row['k']} | {row['auroc']:.3f} "
                f"({_interval(row['interval'], '{:.3f}')}) | {gain} |"
            )
    if not found["stage_two"]:
        systems = found["own_replies"]["under two system prompts"]
        yield ""
        yield (
            f"It refused {systems['refused']} of {systems['prompts']} prompts, half of them under "
            "a system prompt that tells it to refuse: too few to fit stage two on. Stage one "
            "stands alone."
        )
    pilot = found["pilot"]
    yield ""
    yield (
        f"Reading a prompt takes {pilot['prompt_ms']:.0f} ms (median), with three tokens of the "
        f"reply begun {pilot['with_pilot_ms']:.0f} ms."
    )


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    head = found["head"]
    metrics = head["metrics"]
    yield ""
    yield (
        f"The head has {head['megabytes']:.0f} MB. Held-out refusals: "
        f"{metrics['nll_refusals_before']:.2f} to {metrics['nll_refusals_after']:.2f} nats a "
        "token; the words of ordinary prompts: "
        f"{metrics['nll_ordinary_before']:.2f} to {metrics['nll_ordinary_after']:.2f}."
    )


def _arms(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "| arm | prompts | switched on | complied | change | refused | change | collapsed |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in found["arms"]:
        on = "-" if row["switched_on"] is None else f"{row['switched_on']:.1%}"
        words = " | ".join(
            f"{row[word]:.1%} ({row[f'{word}_low']:.1%} to {row[f'{word}_high']:.1%}) | "
            f"{100 * row[f'{word}_change']:+.1f}"
            for word in ("complied", "refused")
        )
        yield (
            f"| {row['arm']} | {row['prompts']} {row['role'].replace('_', '-')} | {on} | {words} | "
            f"{row['collapsed']:.1%} |"
        )


def _gates(found: Mapping[str, Any]) -> Iterator[str]:
    gain = found["head_gain"]
    ends = [100 * end for end in gain["interval"]]
    yield ""
    yield (
        "The head always on raises refusals of unsafe prompts by "
        f"{100 * gain['change']:.1f} points ({_interval(ends, '{:.1f}')})."
    )
    yield ""
    yield (
        "| gate | recall | recall of complied | stage two asked: unsafe, look-alike, ordinary | "
        "AUROC of unsafe and complied | of the head's gain | of the gain at its recall | "
        "of the head's excess refusals | complied replies down |"
    )
    yield f"|{' --- |' * 9}"
    for gate in found["gates"]:
        asked = ", ".join(f"{share:.1%}" for share in gate["asked"].values())
        of = gate["auroc_unsafe_generation"]
        shares = (
            gate[name]
            for name in (
                "share_of_gain", "share_of_gain_at_recall", "share_of_excess", "complied_down",
            )
        )  # fmt: skip
        yield (
            f"| {gate['name']} | {gate['recall']:.1%} | {gate['recall_of_complied']:.1%} | {asked} "
            f"| {of['auroc']:.3f} ({_interval(of['interval'], '{:.3f}')}) | "
            f"{' | '.join('-' if share is None else f'{share:.0%}' for share in shares)} |"
        )


def _front(found: Mapping[str, Any]) -> Iterator[str]:
    if any("front" not in gate for gate in found["gates"]):
        return  # a model that was measured before there was one
    yield ""
    yield "The same gates with other thresholds, by the share of benign validation prompts flagged:"
    yield ""
    yield (
        "| gate | flagged | recall | complied, unsafe | down by | look-alikes refused, change | "
        "ordinary refused, change |"
    )
    yield f"|{' --- |' * 7}"
    for gate in found["gates"]:
        for at in gate["front"]:
            yield (
                f"| {gate['name']} | {at['fpr']:.1%} | {at['recall']:.1%} | {at['complied']:.1%} "
                f"| {at['complied_down']:.0%} | {100 * at['more_refused_look_alike']:+.1f} "
                f"| {100 * at['more_refused_ordinary']:+.1f} |"
            )


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return "-" if ends is None else f"{form.format(ends[0])} to {form.format(ends[1])}"
