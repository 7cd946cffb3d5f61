"""`benchmarks.throughput_vllm` as Markdown, and what its results say of the claim."""

from collections.abc import Mapping, Sequence
from typing import Any

AT_LEAST = 0.98
"""The claim: of the tokens a second of vLLM by itself, the guarded one has so many."""
STREAMS = 8
"""From so many on."""
ON, CONTROL, LAST = "on / off", "off again / off", "on, last token / off"


def claims(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say whether the guarded engine keeps the throughput of many streams that all pass."""
    return {
        "at_least": AT_LEAST,
        "cells": {
            f"{cell['name']}: {name}": _holds(cell, name)
            for cell in cells
            for name in (ON, LAST)
            if cell["streams"] >= STREAMS and not cell["flagged"]
        },
    }


def _holds(cell: Mapping[str, Any], name: str) -> bool | None:
    """Return None where the noise, or the interval, is wider than what is claimed."""
    low, high = cell["ratios"][name]["tokens_per_s"]["interval"]
    noise = max(abs(end - 1) for end in cell["ratios"][CONTROL]["tokens_per_s"]["interval"])
    if low >= AT_LEAST:
        return True
    return None if high >= AT_LEAST or noise > 1 - AT_LEAST else False


def markdown(found: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    parts = [_head(found), _ratios(found), _times(found), _checks(found), _claims(found)]
    return "\n\n".join(parts) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    machine, asked, settings = found["machine"], found["asked"], found["settings"]["on"]
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    note = f" {found['note']}." if found["note"] else ""
    detector = "a detector of random weights" if asked["shape"] else "the packaged detector"
    return (
        "# The guard inside vLLM\n\n"
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gib']} GiB{gpu}; {versions}. Model {found['model']['name']} in "
        f"{found['model']['dtype']}, compilation {settings['compilation']}, "
        f"{asked['rounds']} rounds, seed {asked['seed']}, clock: {asked['clock']}.{note}\n\n"
        "`off` is vLLM's engine by itself, without taps, readings or a judge; `off again` is the "
        "same engine once more: what it differs by is noise. `on` is the guarded engine with "
        f"{detector}, which reads the last token and the mean over the user's text; `on, "
        "last token` has the first of the two alone, and may so read the prefix cache. Flagged "
        f"prompts are answered by `{asked['responder']}`; `off` answers them like any other. Rates "
        "and times are those of the replies to prompts that pass, with rendering and queue. Steps "
        f"hold {settings['max_num_batched_tokens']} tokens, a block of the cache "
        f"{settings['block_size']}; the cache is emptied before each window.\n\n"
        "vLLM's own extraction of hidden states (`extract_hidden_states`) writes the states of all "
        f"tokens into a file, which is read and scored at a reply's end: {found['extraction']}."
    )


def _ratios(found: Mapping[str, Any]) -> str:
    rows = [
        f"| {cell['name']} | {cell['flagged']} of {cell['requests']} | {name} "
        f"| {cell['arms'][name.removesuffix(' / off')]['tokens_per_s']['median']:.1f} "
        f"| {_interval(of['tokens_per_s'])} | {_interval(of['first_token'])} "
        f"| {_interval(of['between_tokens'])} |"
        for cell in found["cells"]
        for name, of in cell["ratios"].items()
    ]
    return "\n".join(
        [
            "## Ratios, paired by round\n",
            "Median of the rounds and its 95% bootstrap interval. Of times, each round's medians "
            "are compared: over 1 is slower.\n",
            "| round | flagged | arms | tokens/s of the first | tokens/s | time to first token "
            "| time between tokens |",
            "| --- " * 7 + "|",
            *rows,
        ]
    )


def _interval(of: Mapping[str, Any]) -> str:
    low, high = of["interval"]
    return f"{of['median']:.3f} ({low:.3f} to {high:.3f})"


def _times(found: Mapping[str, Any]) -> str:
    rows = [
        f"| {cell['name']} | {name} | {of['tokens_per_s']['median']:.1f} "
        f"| {_percentiles(of['first_token_ms'])} | {_percentiles(of['between_tokens_ms'])} |"
        for cell in found["cells"]
        for name, of in cell["arms"].items()
    ]
    return "\n".join(
        [
            "## Rates and times\n",
            "Tokens a second are the median of the rounds; times are milliseconds, p50 / p95 / p99 "
            "over all rounds.\n",
            "| round | arm | tokens/s | to first token | between tokens |",
            "| --- " * 5 + "|",
            *rows,
        ]
    )


def _percentiles(of: Mapping[str, float]) -> str:
    return " / ".join(f"{of[p]:.0f}" for p in ("p50", "p95", "p99")) if of else "none"


def _checks(found: Mapping[str, Any]) -> str:
    rows = []
    for cell in found["cells"]:
        for name, of in cell["arms"].items():
            counts = of["of_one_window"]
            scored = "" if of["scored"] is None else f"{of['scored']} of {cell['requests']}"
            rows.append(
                f"| {cell['name']} | {name} | {scored} | {of['num_problems']} "
                f"| {of['replies_that_differ']} of {cell['requests'] - cell['flagged']} "
                f"| {counts['computed_prompt_tokens']} of {counts['prompt_tokens']} "
                f"| {counts['prompts_with_prefix_hits']} | {counts['prompts_in_chunks']} "
                f"| {counts['preempted']} |"
            )
    near = found["nearly_greedy"]
    apart = [cell["scores_apart"] for cell in found["cells"] if cell["scores_apart"]]
    scores = (
        f"Scores of the states that vLLM extracts and those of `on` lie at most "
        f"{max(of['most'] for of in apart):.1e} apart; they spread by "
        f"{apart[0]['spread']:.2f} (standard deviation)."
        if apart
        else ""
    )
    return "\n".join(
        [
            "## What was checked\n",
            "Replies that differ are those of prompts that pass, held against `off`, token for "
            "token. Where a flagged prompt or the prefix cache changes what is in a batch, or the "
            "compiler fuses otherwise, bfloat16 rounds otherwise, and of two nearly equal tokens "
            "the other may be drawn. Each of those replies, and its counterpart, was read behind "
            "its own prompt by transformers: of "
            f"{near['replies']} replies {near['beyond_margin']} had a token {near['margin']} or "
            f"more below the largest logit (the furthest was {near['largest_gap']:.2f}). The last "
            f"four columns are of one window. {scores}\n",
            "| round | arm | prompts scored | lost, unscored or on a wrong route "
            "| replies that differ | prompt tokens computed | prompts with prefix hits "
            "| prompts in chunks | preemptions |",
            "| --- " * 9 + "|",
            *rows,
        ]
    )


def _claims(found: Mapping[str, Any]) -> str:
    words = {True: "holds", False: "does not hold", None: "is not decided"}
    of = found["claims"]
    rows = [f"- {name}: {words[holds]}" for name, holds in of["cells"].items()]
    return "\n".join(
        [
            "## The claim\n",
            f"From {STREAMS} streams on, and with nothing flagged, the guarded engine has at least "
            f"{of['at_least']:.0%} of the tokens a second of vLLM by itself (the lower end of the "
            "interval). It is not decided where the upper end still is, or the control moves by "
            "more. What is flagged costs what its responder does: see `benchmarks.rerouting`.\n",
            *(rows or ["No round had so many streams."]),
        ]
    )
