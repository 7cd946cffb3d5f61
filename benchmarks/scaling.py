"""Measures how the guard's time grows: with tokens, detectors, layers and prompts decoded together.

The times are those that the engine counts for the guard and for the prefill in the same request, in
rounds that go through all sizes of a question in random order. An exponent is the slope of the
logarithms of time over size; its interval comes from drawing the rounds anew. Detectors are linear
ones of random weights on the embedded model; those beside each other read the same layers.

    python -m benchmarks.scaling [--rounds 9] [--most-s 60] [--questions tokens,batch]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.alternating import alternate, summary
from benchmarks.machine import describe_machine
from benchmarks.overhead import ONE_TOKEN, chat_of_length
from benchmarks.random_guards import random_guard
from demur.core.readings import Array
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard

RESULTS = Path(__file__).parent / "results" / "scaling.json"
SIZES: dict[str, tuple[int, ...]] = {
    "tokens": (32, 128, 512, 2048, 8192),
    "detectors": (1, 4, 16, 64),
    "layers": (1, 3, 10, 30),
    "batch": (1, 4, 16),
}
MARGIN_TOKENS = 2
"""Below the size asked for, so that a prompt of the whole context leaves room for a reply."""
TOKENS_ELSEWHERE = 128
"""Of a prompt where something else grows."""
FEW_TOKENS = Sampling(max_tokens=4)

Times = list[tuple[float, float]]


def exponent(sizes: Sequence[int], times: Sequence[Array], *, draws: int = 2000) -> dict[str, Any]:
    """Return the slope of log median time over log size, with its 95% bootstrap interval.

    Args:
        sizes: At least two, above 0.
        times: Seconds [round] of each size; the numbers of rounds may differ.
        draws: Of the bootstrap.
    """
    logs = np.log(np.asarray(sizes, dtype=float))
    generator = np.random.default_rng(0)

    def slope(values: Sequence[Array]) -> float:
        medians = [np.median(some) for some in values]
        return float(np.polyfit(logs, np.log(medians), 1)[0])

    drawn = [slope([generator.choice(t, len(t)) for t in times]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"exponent": slope(times), "interval": (float(low), float(high))}


def replied(guard: Guard, chats: Sequence[Chat], sampling: Sampling, into: Times) -> None:
    """Answer chats side by side, and note the seconds of the guard and of the prefills."""
    timings = [reply.timings for reply in guard.replies(chats, sampling)]
    into.append((sum(t.guard_s for t in timings), sum(t.prefill_s for t in timings)))


def arm_of(
    engine: TransformersEngine, question: str, size: int, into: Times
) -> Callable[[], object]:
    """Return what asks a question at one size."""
    tokens = min(size, engine.max_tokens - MARGIN_TOKENS) if question == "tokens" else None
    chat = chat_of_length(engine, tokens or TOKENS_ELSEWHERE)
    guard = random_guard(
        engine,
        num_detectors=size if question == "detectors" else 1,
        num_layers=size if question == "layers" else None,
    )
    chats = [chat] * (size if question == "batch" else 1)
    sampling = FEW_TOKENS if question == "batch" else ONE_TOKEN
    return partial(replied, guard, chats, sampling, into)


def measure(
    engine: TransformersEngine, question: str, sizes: Sequence[int], *, rounds: int, most_s: float
) -> dict[str, Any]:
    """Return a question's times and exponents.

    Args:
        engine: Of the embedded model.
        question: A key of SIZES.
        sizes: To measure at.
        rounds: Of all sizes.
        most_s: Seconds after which a size sits the other rounds out; it has two at least.
    """
    times: dict[str, Times] = {str(size): [] for size in sizes}
    arms = {str(size): arm_of(engine, question, size, times[str(size)]) for size in sizes}
    arms[str(sizes[0])]()
    times[str(sizes[0])].clear()
    alternate(arms, rounds=rounds, warm_ups=0, most_s=most_s)
    both = {name: np.array(of) for name, of in times.items()}  # [round, guard and prefill]
    guard_s, prefill_s = ([of[:, column] for of in both.values()] for column in (0, 1))
    return {
        "rows": [
            {
                "size": size,
                "rounds": len(own),
                "guard_s": summary(own),
                "prefill_s": summary(prefill),
                "share": summary(own / prefill),
            }
            for size, own, prefill in zip(sizes, guard_s, prefill_s, strict=True)
        ],
        "guard": exponent(sizes, guard_s),
        "prefill": exponent(sizes, prefill_s),
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| what grows | sizes | guard, ms | of the prefill | exponent of the guard's time (95%) "
        "| of the prefill's |",
        "| --- " * 6 + "|",
    ]
    for question, found in results["questions"].items():
        rows = found["rows"]
        low, high = found["guard"]["interval"]
        own = ", ".join(f"{row['guard_s']['median'] * 1e3:.2f}" for row in rows)
        shares = ", ".join(f"{row['share']['median']:.2%}" for row in rows)
        lines.append(
            f"| {question} | {', '.join(str(row['size']) for row in rows)} "
            f"| {own} | {shares} "
            f"| {found['guard']['exponent']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {found['prefill']['exponent']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--most-s", type=float, default=60.0)
    parser.add_argument("--questions", default=",".join(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="on the machine, such as what else runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engine = TransformersEngine.load("embedded", max_batch=max(SIZES["batch"]))
    results = {
        "machine": describe_machine(),
        "threads": options.threads,
        "note": options.note,
        "model": engine.model_id.as_dict(),
        "questions": {
            question: measure(
                engine, question, SIZES[question], rounds=options.rounds, most_s=options.most_s
            )
            for question in options.questions.split(",")
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2) if options.json else table(results))


if __name__ == "__main__":
    main()
