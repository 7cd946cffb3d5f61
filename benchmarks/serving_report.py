"""`benchmarks.serving` as Markdown."""

from collections.abc import Mapping
from typing import Any

GOAL_RATIO = 0.97
GOAL_MEMORY = "within 5% or 50 MB"
RUNS = {1: "one run", 2: "two runs, one for the throughput and one for all else"}


def markdown(found: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    parts = [_head(found), _soak(found), _check(found), _times(found), _throughput(found)]
    return "\n\n".join(parts) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    machine, asked = found["machine"], found["asked"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return (
        "# The server under load\n\n"
        f"`{found['command']}`, in {RUNS[found['num_runs']]}, on {machine['cores']} cores of "
        f"{machine['processor']}, "
        f"{machine['memory_gib']} GiB; Python {machine['python']}, {versions}. "
        f"Model {found['model']['name']} in {found['model']['dtype']}, "
        f"{asked['clients']} clients, `limits.max_batch = {asked['max_batch']}`, "
        f"seed {asked['seed']}. "
        f"Load average {found['load_average'][0]} before it began: {found['quiet']}. "
        "The clients are a process of their own, kept to one of the same cores: what they take "
        f"({found['soak']['clients_cpu_share']:.0%} of one core in the soak) the server lacks."
    )


def _soak(found: Mapping[str, Any]) -> str:
    soak, asked = found["soak"], found["asked"]
    counts, memory = soak["counts"], soak["memory_mb"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in counts.items())
    problems = "\n".join(f"- {problem}" for problem in soak["problems"]) or "None."
    return (
        "## Soak\n\n"
        f"`demur serve` for {asked['warm_s']:.0f} s of warm-up and {asked['soak_s']:.0f} s: "
        "10% flagged prompts, 1% malformed requests, 5% clients that vanish in mid-stream. All "
        "answers are judged, those of the warm-up too.\n\n"
        f"| answers | |\n| --- | --- |\n{rows}\n"
        f"| lost, mixed up or wrong | {soak['num_problems']} |\n"
        f"| requests under way or waiting afterwards | {soak['left_over']:.0f} |\n\n"
        f"Problems: {problems}\n\n"
        f"Memory of the server: {memory['after_warm_up']:.0f} MB after the warm-up, "
        f"{memory['at_end']:.0f} MB at the end ({memory['change']:+.1%}; goal: {GOAL_MEMORY}); "
        "medians of the last ten seconds each."
    )


def _check(found: Mapping[str, Any]) -> str:
    soak, power = found["soak"], found["power"]
    rows = "\n".join(
        f"| {kind} | {of['by_greediness']} of {of['mixed']} | {of['by_all']} of {of['mixed']} |"
        for kind, of in power.items()
    )
    return (
        "## How replies are checked\n\n"
        "Replies are greedy, and the reply that each prompt gets alone is known. Of the complete "
        f"ones {soak['replies_identical_to_those_alone']} were the known ones, letter for letter; "
        f"{soak['replies_nearly_greedy']} were others, since bfloat16 rounds otherwise in a batch. "
        "Each of those was read behind its own prompt in one pass: every token's logit had to be "
        f"less than {found['asked']['margin']} below the largest one (the furthest was "
        f"{soak['largest_gap']:.2f}). Every stream had to have one id of its own, an end, and as "
        "many tokens as the server counted.\n\n"
        "That this catches mix-ups was tried on replies that were spoiled on purpose, caught by "
        "the second rule alone, and with the count of tokens:\n\n"
        f"| what was done to a reply | by greediness | by both |\n| --- | --- | --- |\n{rows}"
    )


def _times(found: Mapping[str, Any]) -> str:
    rows = []
    for name, times in (("soak", found["soak"]), ("one client", found["one_client"])):
        first, between = times["first_token_ms"], times["between_tokens_ms"]
        cells = [f"{values[p]:.0f}" for values in (first, between) for p in ("p50", "p95", "p99")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(rows)
    return (
        "## Times\n\n"
        "Milliseconds, of replies by the model, as the client sees them.\n\n"
        "| | first token p50 | p95 | p99 | between tokens p50 | p95 | p99 |\n"
        f"| --- | --- | --- | --- | --- | --- | --- |\n{table}"
    )


def _throughput(found: Mapping[str, Any]) -> str:
    windows = found["windows"]
    arms = "\n".join(
        f"| {arm} | {of['median']:.0f} | {', '.join(f'{v:.0f}' for v in of['tokens_per_s'])} |"
        for arm, of in windows["arms"].items()
    )
    ratios = "\n".join(_ratio_row(name, of) for name, of in windows["ratios"].items())
    skipped = "\n".join(f"{sentence}." for sentence in windows["skipped"])
    asked = found["asked"]
    return (
        "## Throughput\n\n"
        f"{asked['rounds']} rounds, each of one window an arm; a window comes in "
        f"{asked['parts']} parts, and the arms take turns by parts, in random order. A part is the "
        f"same work for each arm, {asked['per_client']} requests from each client, from the first "
        f"request to the last token. {asked['rival_rounds']} rounds of one part beside "
        "`transformers serve`. "
        "Ordinary prompts only. Unguarded is the same server and engine, built by "
        "`benchmarks/serving_unguarded.py`: nothing is read, asked or watched. The second "
        "unguarded arm is the control. `transformers serve` is the server that comes with "
        "transformers, on the same model, number format and cores.\n\n"
        f"| arm | tokens a second | windows |\n| --- | --- | --- |\n{arms}\n\n"
        "| ratio, paired by round | median | range |\n| --- | --- | --- |\n"
        f"{ratios}\n\n"
        f"Goal for guarded / unguarded: at least {GOAL_RATIO}.\n{skipped}"
    ).rstrip()


def _ratio_row(name: str, of: Mapping[str, Any]) -> str:
    low, high = of["range"]
    return (
        f"| {name} | {of['median']:.3f} | {low:.3f} to {high:.3f} "
        f"(covers the median with {of['covers_median']:.0%}) |"
    )
