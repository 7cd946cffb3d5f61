"""Measures what a guarded request costs beside a guard model in front of the same model.

Random weights in real shapes: neither time nor operations depend on what the weights are. The guard
model's cost is a lower bound: one pass over 512 tokens and one label token, without the template
and policy that real ones put around the prompt. demur's cost is a reply's first token, guarded less
unguarded, paired by round, and the time that the engine itself counts for the guard; the control is
the unguarded arm against itself. Beside the first served model all guard models are timed, beside
the others the cheapest. Cost only: quality is what others published, not rerun. On a machine that
is not quiet, `--clock processor` counts this process's time alone.

    python -m benchmarks.against_guard_models [--rounds 12] [--served 0.135B,0.5B,1B]
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    DebertaV2Config,
    LlamaConfig,
    Qwen3Config,
)

from benchmarks.alternating import CLOCKS, Clock, alternate, summary
from benchmarks.machine import describe_machine
from benchmarks.overhead import ONE_TOKEN, chat_of_length
from benchmarks.random_guards import random_guard, reads_of
from benchmarks.shapes import LLAMA_1B, SERVED, make
from demur.core.reads import CaptureSpec
from demur.engines.transformers import TransformersEngine
from demur.guard.exchange import plain_replies
from demur.modeling.blocks import find_parts
from demur.modeling.identity import identify
from demur.modeling.load import LoadedModel, load

RESULTS = Path(__file__).parent / "results" / "against_guard_models.json"
NOT_RERUN = "published, not rerun"
MOST = 0.02
"""The claim: of what the cheapest guard model adds, the guard adds less."""


@dataclass(frozen=True)
class GuardModel:
    """A guard model's shape, and what its makers or others say of its quality."""

    config: Callable[[], Any]
    published: str
    source: str
    is_classifier: bool = False


GUARD_MODELS = {
    "Prompt Guard 2 86M": GuardModel(
        lambda: DebertaV2Config(
            vocab_size=251000,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=512,
            relative_attention=True,
            position_buckets=256,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
            pad_token_id=0,
        ),
        "jailbreaks: AUC 0.998, recall 97.5% at 1% false positives",
        "model card",
        is_classifier=True,
    ),
    "Qwen3Guard 0.6B": GuardModel(
        lambda: Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        "F1 strict / loose: ToxicChat 65.1 / 77.7, WildGuard 87.7 / 85.1",
        "Qwen3Guard technical report, tables 2 and 11",
    ),
    "Llama Guard 3 1B": GuardModel(
        lambda: LlamaConfig(**LLAMA_1B),
        "macro-F1: ToxicChat 63.3, WildGuard 78.6",
        "CSSLab/SIREN, README",
    ),
}


def read_once(model: Any, num_tokens: int, *, is_classifier: bool) -> None:
    """Run a guard model's one pass."""
    ids = torch.arange(num_tokens, device=model.device)[None] % 1000
    with torch.inference_mode():
        if is_classifier:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        else:
            model(input_ids=ids, logits_to_keep=1, use_cache=False)


def flops(model: Any, num_tokens: int, *, is_classifier: bool = False) -> int:
    """Return the floating-point operations of one pass, as torch counts them."""
    # torch leaves out the attention that processors run.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: _attention})
    with counter:
        read_once(model, num_tokens, is_classifier=is_classifier)
    return int(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention between tensors of such shapes."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def guard_flops(reads: tuple[CaptureSpec, ...], d_model: int, num_tokens: int) -> int:
    """Return the operations of the linear detector: its products, and the means over all tokens."""
    products = 2 * d_model * sum(len(read.layers) for read in reads)
    # Squares, their sum, a division and a sum for each value of each token that is pooled.
    pooled = sum(len(read.layers) for read in reads if read.pool != "none")
    return products + 4 * d_model * num_tokens * pooled


def served_engine(config: Any, dtype: torch.dtype, tokenizer: Any) -> TransformersEngine:
    """Return an engine of random weights."""
    model = make(config, dtype=dtype)
    name = f"{config.model_type}-{config.hidden_size}"
    model_id = identify(model, tokenizer, name=name)
    return TransformersEngine(LoadedModel(model, tokenizer, find_parts(model), model_id))


def measure(
    served: str,
    models: dict[str, Any],
    flops_of: dict[str, int],
    *,
    dtype: torch.dtype,
    num_tokens: int,
    rounds: int,
    clock: Clock,
) -> dict[str, Any]:
    """Return the row of a served model: guarded, unguarded twice, and each guard model's pass."""
    config = SERVED[served]()
    engine = served_engine(config, dtype, load("embedded").tokenizer)
    guard = random_guard(engine)
    chat = chat_of_length(engine, num_tokens)
    own_s: list[float] = []
    arms: dict[str, Callable[[], object]] = {
        "guarded": lambda: own_s.append(guard.reply(chat, ONE_TOKEN).timings.guard_s),
        "unguarded": lambda: list(plain_replies(engine, [chat], ONE_TOKEN)),
        "unguarded_again": lambda: list(plain_replies(engine, [chat], ONE_TOKEN)),
    }
    for name, model in models.items():
        is_classifier = GUARD_MODELS[name].is_classifier
        arms[name] = _pass(model, num_tokens, is_classifier=is_classifier)
    seconds = alternate(arms, rounds=rounds, clock=clock)
    own = np.array(own_s[-rounds:])
    extra = seconds["guarded"] - seconds["unguarded"]
    of_guard = guard_flops(reads_of(config.num_hidden_layers), config.hidden_size, num_tokens)
    return {
        "prompt_tokens": len(engine.render(chat)),
        "rounds": rounds,
        "flops": flops(engine.loaded.model, num_tokens),
        "guard_flops": of_guard,
        "unguarded_s": summary(seconds["unguarded"]),
        "extra_s": summary(extra),
        "control_s": summary(seconds["unguarded_again"] - seconds["unguarded"]),
        "guard_s": summary(own),
        "guard_models": {
            name: {
                "added_s": summary(seconds[name]),
                "own_time_of_it": summary(own / seconds[name]),
                "extra_of_it": summary(extra / seconds[name]),
                "flops_of_it": of_guard / flops_of[name],
            }
            for name in models
        },
    }


def _pass(model: Any, num_tokens: int, *, is_classifier: bool) -> Callable[[], None]:
    return lambda: read_once(model, num_tokens, is_classifier=is_classifier)


def described(name: str, model: Any, num_tokens: int) -> dict[str, Any]:
    """Return a guard model's size, operations and published quality."""
    of = GUARD_MODELS[name]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": flops(model, num_tokens, is_classifier=of.is_classifier),
        "quality": of.published,
        "quality_is": NOT_RERUN,
        "source": of.source,
    }


def cheapest_of(row: dict[str, Any]) -> str:
    """Return the guard model that adds the least time."""
    added: dict[str, float] = {
        name: of["added_s"]["median"] for name, of in row["guard_models"].items()
    }
    return min(added, key=lambda name: added[name])


def claim(rows: dict[str, Any]) -> dict[str, Any]:
    """Say for each served model whether the guard costs under MOST of the cheapest guard model."""
    found = {}
    for served, row in rows.items():
        cheapest = cheapest_of(row)
        of_it = row["guard_models"][cheapest]
        most_s = MOST * of_it["added_s"]["median"]
        noise_s = max(abs(end) for end in row["control_s"]["interval"])
        found[served] = {
            "cheapest": cheapest,
            "by_own_time": of_it["own_time_of_it"]["interval"][1] < MOST,
            # A control that moves by more than the claim tells nothing either way.
            "by_the_clock": None
            if noise_s > most_s
            else of_it["extra_of_it"]["interval"][1] < MOST,
            "by_operations": of_it["flops_of_it"] < MOST,
        }
    return {"at_most": MOST, "served": found}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| served | guard model in front | it adds, ms | demur by the clock, ms (95%) "
        "| control, ms (95%) | demur's own time, ms | of it (95%) | operations of it "
        f"| quality, *{NOT_RERUN}* |",
        "| --- " * 9 + "|",
    ]
    for served, row in results["served"].items():
        for name, of_it in row["guard_models"].items():
            low, high = of_it["own_time_of_it"]["interval"]
            about = results["guard_models"][name]
            lines.append(
                f"| {served} | {name} | {of_it['added_s']['median'] * 1e3:.0f} "
                f"| {_ms(row['extra_s'])} | {_ms(row['control_s'])} "
                f"| {row['guard_s']['median'] * 1e3:.2f} "
                f"| {of_it['own_time_of_it']['median']:.2%} ({low:.2%} to {high:.2%}) "
                f"| {of_it['flops_of_it']:.4%} | {about['quality']} ({about['source']}) |"
            )
    return "\n".join(lines)


def _ms(of: dict[str, Any]) -> str:
    low, high = of["interval"]
    return f"{of['median'] * 1e3:.1f} ({low * 1e3:.1f} to {high * 1e3:.1f})"


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--served", default="0.135B,0.5B,1B", help=f"some of {list(SERVED)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--note", default="", help="on the machine, such as what else runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype, clock = getattr(torch, options.dtype), CLOCKS[options.clock]
    models = {
        name: make(of.config(), dtype=dtype, is_classifier=of.is_classifier)
        for name, of in GUARD_MODELS.items()
    }
    about = {name: described(name, model, options.tokens) for name, model in models.items()}
    flops_of = {name: int(of["flops"]) for name, of in about.items()}
    how = {"dtype": dtype, "num_tokens": options.tokens, "rounds": options.rounds}
    first, *others = options.served.split(",")
    rows = {first: measure(first, models, flops_of, clock=clock, **how)}
    cheapest = cheapest_of(rows[first])
    few = {cheapest: models[cheapest]}
    rows |= {served: measure(served, few, flops_of, clock=clock, **how) for served in others}
    results = {
        "machine": describe_machine(),
        "threads": options.threads,
        "note": options.note,
        "clock": options.clock,
        "dtype": options.dtype,
        "tokens": options.tokens,
        "weights": "random, seed 0",
        "guard_models": about,
        "served": rows,
        "claim": claim(rows),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2) if options.json else table(results))


if __name__ == "__main__":
    main()
