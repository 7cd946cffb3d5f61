"""Measures what the guard costs: time to first token, guarded against unguarded.

For each prompt length, rounds of four arms in random order: guarded, our loop unguarded (twice, so
that the second shows the noise), and transformers' `generate`. The unguarded arm of a comparison is
the faster of our loop and `generate`. Ratios are paired by round; the interval of their median is a
bootstrap's.

    python -m benchmarks.overhead [--rounds 100] [--lengths 32,128,512,2048] [--json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.alternating import alternate, median_interval
from benchmarks.machine import describe_machine
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.exchange import plain_replies

RESULTS = Path(__file__).parent / "results" / "overhead.json"
WORDS = ("the", "river", "ran", "past", "an", "old", "mill", "where", "a", "heron", "stood")
ONE_TOKEN = Sampling(max_tokens=1)


def chat_of_length(engine: TransformersEngine, num_tokens: int) -> Chat:
    """Return a chat whose prompt has (almost) a number of tokens: never more."""
    words: list[str] = []
    while True:
        longer = Chat.from_text(" ".join([*words, WORDS[len(words) % len(WORDS)]]))
        if len(engine.render(longer)) > num_tokens:
            return Chat.from_text(" ".join(words) or "Hi")
        words.append(WORDS[len(words) % len(WORDS)])


def generate(engine: TransformersEngine, prompt: Prompt) -> None:
    """Draw one token as transformers does."""
    ids = torch.tensor([prompt.token_ids])
    engine.loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=engine.loaded.tokenizer.eos_token_id,
    )


def measure(
    engine: TransformersEngine, guard: Guard, *, num_tokens: int, rounds: int
) -> dict[str, Any]:
    """Return one row of the table: a prompt length."""
    chat = chat_of_length(engine, num_tokens)
    prompt = engine.render(chat)
    guard_s: list[float] = []
    prefill_s: list[float] = []

    def guarded() -> None:
        timings = guard.reply(chat, ONE_TOKEN).timings
        guard_s.append(timings.guard_s)
        prefill_s.append(timings.prefill_s)

    def plain() -> None:
        list(plain_replies(engine, [chat], ONE_TOKEN))

    arms = {
        "guarded": guarded,
        "unguarded": plain,
        "unguarded_again": plain,
        "generate": lambda: generate(engine, engine.render(chat)),
    }
    times = alternate(arms, rounds=rounds, seed=num_tokens, warm_ups=2)
    guard_s, prefill_s = guard_s[-rounds:], prefill_s[-rounds:]  # without those of warming up
    baseline = min(("unguarded", "generate"), key=lambda name: float(np.median(times[name])))
    ratios = times["guarded"] / times[baseline]
    control = times["unguarded_again"] / times["unguarded"]
    return {
        "prompt_tokens": len(prompt),
        "rounds": rounds,
        "baseline": baseline,
        "median_ms": {name: float(np.median(values) * 1e3) for name, values in times.items()},
        "ratio": float(np.median(ratios)),
        "ratio_interval": median_interval(ratios),
        "control_ratio": float(np.median(control)),
        "control_interval": median_interval(control),
        "guard_ms": float(np.median(guard_s) * 1e3),
        "guard_share_of_prefill": float(np.median(np.array(guard_s) / np.array(prefill_s))),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| prompt tokens | guarded / unguarded (95%) | unguarded / unguarded (95%) | baseline | "
        "guard's own time | of the prefill |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["ratio_interval"]
        control_low, control_high = row["control_interval"]
        lines.append(
            f"| {row['prompt_tokens']} | {row['ratio']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {row['control_ratio']:.4f} ({control_low:.4f} to {control_high:.4f}) "
            f"| {row['baseline']} {row['median_ms'][row['baseline']]:.1f} ms "
            f"| {row['guard_ms']:.3f} ms | {row['guard_share_of_prefill']:.3%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--lengths", default="32,128,512,2048")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    engine = TransformersEngine.load("embedded")
    guard = Guard.load(engine)
    lengths = [int(length) for length in options.lengths.split(",")]
    rows = [measure(engine, guard, num_tokens=n, rounds=options.rounds) for n in lengths]
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        "detectors": [detector.name for detector in guard.detectors],
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
