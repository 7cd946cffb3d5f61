"""Measures what it costs to answer a flagged prompt in another way: prompt tokens, and time.

For each responder, with random weights: how many tokens of a prompt the model reads beyond those of
a prompt that passes, and how much later the first token comes, paired by round. In transformers the
tokens are those that blocks are given, divided by the number of blocks; in vLLM those that its
scheduler hands to the worker.

    python -m benchmarks.rerouting [--rounds 15] [--tokens 256] [--engines transformers,vllm]
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import demur
from benchmarks.alternating import CLOCKS, alternate, median_interval, summary
from benchmarks.machine import describe_machine
from benchmarks.overhead import ONE_TOKEN, chat_of_length
from benchmarks.rerouting_ways import (
    IN_VLLM,
    PASSES,
    SLACK,
    Way,
    steered,
    under_an_adapter,
    ways,
)
from benchmarks.vllm_prompts import shared_text
from benchmarks.vllm_steps import counting
from demur.core import registry
from demur.core.interventions import AddVectors, UseAdapter
from demur.core.protocols import Done, Engine, Request
from demur.core.readings import Array
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel, load

RESULTS = Path(__file__).parent / "results"


def ask(engine: Engine, prompt: Prompt, read: CaptureSpec, way: Way) -> None:
    """Answer a prompt in one way, up to the first token.

    Raises:
        RuntimeError: That failed.
    """
    checkpoint = way.intervention.checkpoint if isinstance(way.intervention, UseAdapter) else None
    request = Request(
        "0",
        prompt,
        ONE_TOKEN,
        (read,),
        lambda _readings: way.intervention,
        checkpoints=() if checkpoint is None else (checkpoint,),
    )
    for event in engine.run([request]):
        if isinstance(event, Done) and event.reason == "error":
            raise RuntimeError(f"{way.name}: {event.error}")


@contextmanager
def counting_blocks(loaded: LoadedModel) -> Iterator[list[int]]:
    """Count the tokens that a model's blocks are given; the list has a number a call."""
    counts: list[int] = []

    def hook(_block: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        counts.append(states.shape[0] * states.shape[1])

    handles = [block.register_forward_hook(hook) for block in loaded.parts.blocks]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def tokens_in_transformers(engine: TransformersEngine, run: Callable[[], None]) -> float:
    """Return how many tokens the model reads meanwhile; half of its blocks make half a token."""
    with counting_blocks(engine.loaded) as counts:
        run()
    return sum(counts) / len(engine.loaded.parts.blocks)


def tokens_in_vllm(engine: Any, run: Callable[[], None]) -> float:
    """Return how many tokens of prompts vLLM computes meanwhile."""
    engine._engine.reset_prefix_cache()
    with counting(engine._engine) as steps:
        run()
    return float(steps.as_dict()["computed_prompt_tokens"])


def rows(
    of: Sequence[Way],
    run: Callable[[Way], None],
    tokens: Callable[[Callable[[], None]], float],
    *,
    rounds: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """Return what each way reads and takes beyond a prompt that passes.

    Args:
        of: The ways; the first one passes.
        run: Answers the prompt in one way.
        tokens: Counts what is read while something runs.
        rounds: Of all ways, in random order.
        clock: Gives seconds.
    """
    read = {way.name: tokens(partial(run, way)) for way in of}
    seconds = alternate({way.name: partial(run, way) for way in of}, rounds=rounds, clock=clock)
    plain = seconds[PASSES.name]
    return [
        row(way, read[way.name] - read[PASSES.name], read[PASSES.name], seconds[way.name], plain)
        for way in of
    ]


def row(way: Way, extra: float, prompt: float, seconds: Array, plain: Array) -> dict[str, Any]:
    """Return a way's row.

    Args:
        way: It.
        extra: Tokens that it reads beyond a prompt that passes.
        prompt: Tokens of that prompt.
        seconds: [round], up to its first token.
        plain: [round], the same of a prompt that passes.
    """
    shares = (seconds - plain) / plain
    claimed = way.claimed_share
    is_adapter = isinstance(way.intervention, UseAdapter)
    return {
        "way": way.name,
        "extra_tokens": round(extra, 2),
        "of_the_prompt": extra / prompt,
        "claimed_at_most": claimed,
        "tokens_hold": "" if claimed is None else _said(extra <= claimed * prompt + 1e-6),
        "extra_s": summary(seconds - plain),
        "time_of_a_prefill": summary(shares),
        "time_holds": _within(shares, claimed + SLACK) if is_adapter and claimed else "",
    }


def _said(holds: bool) -> str:
    return "yes" if holds else "no"


def _within(shares: Array, most: float) -> str:
    """Say whether the median of shares is at most so much: yes, no, or not decided."""
    low, high = median_interval(shares)
    if low <= most < high:
        return "not decided"
    return _said(high <= most)


def in_transformers(loaded: LoadedModel, options: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of the transformers engine."""
    engine, read = TransformersEngine(loaded), read_of(loaded)
    prompt = engine.render(chat_of_length(engine, options.tokens))
    with tempfile.TemporaryDirectory(prefix="demur-rerouting-") as folder:
        of = ways(loaded, Path(folder), read_layer=read.layers[0])
        engine.prepare(way.intervention for way in of if way.intervention is not None)
        found = rows(
            of,
            partial(ask, engine, prompt, read),
            partial(tokens_in_transformers, engine),
            rounds=options.rounds,
            clock=CLOCKS[options.clock],
        )
    return {f"{len(prompt)} tokens": found}


def read_of(loaded: LoadedModel) -> CaptureSpec:
    """Return what the detector reads: the last token, half way up."""
    return CaptureSpec((len(loaded.parts.blocks) // 2,))


def in_vllm(loaded: LoadedModel, options: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of the vLLM engine, with and without a system message to begin with.

    An adapter has an engine of its own: where one is loaded, vLLM compiles nothing without a GPU.
    """
    layer, d_model = read_of(loaded).layers[0], loaded.parts.d_model
    with tempfile.TemporaryDirectory(prefix="demur-rerouting-") as folder:
        vectors = steered(d_model, Path(folder) / "vectors", layer)
        found = _rows_in_vllm(loaded, options, [*IN_VLLM, vectors])
        adapter = under_an_adapter(loaded, Path(folder) / "adapter", 0, "in all blocks")
        beside = _rows_in_vllm(loaded, options, [PASSES, adapter])
    return {**found, **{f"{prompt}, an adapter loaded": of for prompt, of in beside.items()}}


def _rows_in_vllm(
    loaded: LoadedModel, options: argparse.Namespace, of: Sequence[Way]
) -> dict[str, Any]:
    read = read_of(loaded)
    weights = np.ones((1, loaded.parts.d_model), np.float32)
    engine: Any = registry.load("engines", "vllm").load(
        options.model,
        readouts=[LinearReadout({read: weights}, 0.0)],
        interventions=[
            way.intervention for way in of if isinstance(way.intervention, UseAdapter | AddVectors)
        ],
        max_batch=1,
        max_tokens=2048,
        is_eager=options.eager,
        options={"kv_cache_memory_bytes": 256 << 20},
    )
    chat = chat_of_length(engine, options.tokens)
    chats = {
        "": chat,
        " behind a system message": Chat.from_text(
            chat.last_user_text, system=shared_text(options.system_words)
        ),
    }
    found = {}
    for where, one in chats.items():
        prompt = engine.render(one)

        def run(way: Way, prompt: Prompt = prompt) -> None:
            engine._engine.reset_prefix_cache()
            ask(engine, prompt, read, way)

        found[f"{len(prompt)} tokens{where}"] = rows(
            of,
            run,
            partial(tokens_in_vllm, engine),
            rounds=options.rounds,
            clock=CLOCKS[options.clock],
        )
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine = found["machine"]
    parts = [
        "# What it costs to answer a flagged prompt\n",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}; model "
        f"{found['model']['name']} in {found['model']['dtype']}, {found['rounds']} rounds, weights "
        "of responders at random. Tokens and times are those beyond a prompt that passes, up to "
        "the first token; an adapter reads part of the blocks, and so part of a token each. "
        f"The detector reads block {found['read_layer']} of {found['blocks']}. "
        f"Claimed: no tokens where the cache is kept, and an adapter's share of the blocks, in "
        f"time {SLACK:.0%} of a prefill more.\n",
    ]
    for engine, of in found["engines"].items():
        if isinstance(of, str):
            parts.append(f"{engine} was not measured: {of}.\n")
            continue
        for prompt, its_rows in of.items():
            parts += [
                f"## {engine}, a prompt of {prompt}\n",
                "| answered by | extra prompt tokens | of the prompt | claimed | extra time, ms "
                "| of a prefill (95%) | tokens as claimed | time as claimed |",
                "| --- " * 8 + "|",
                *(_line(one) for one in its_rows),
                "",
            ]
    return "\n".join(parts)


def _line(of: dict[str, Any]) -> str:
    low, high = of["time_of_a_prefill"]["interval"]
    claimed = "" if of["claimed_at_most"] is None else f"{of['claimed_at_most']:.0%}"
    return (
        f"| {of['way']} | {of['extra_tokens']:g} | {of['of_the_prompt']:.1%} | {claimed} "
        f"| {of['extra_s']['median'] * 1e3:.1f} | {of['time_of_a_prefill']['median']:.1%} "
        f"({low:.1%} to {high:.1%}) | {of['tokens_hold']} | {of['time_holds']} |"
    )


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=256, help="of the prompt")
    parser.add_argument("--system-words", type=int, default=200, help="before it, once more")
    parser.add_argument("--engines", default="transformers,vllm")
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--eager", action="store_true", help="let vLLM compile nothing")
    parser.add_argument("--note", default="", help="on the machine, such as what else runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args()
    loaded, engines = load(options.model), dict[str, Any]()
    for name in options.engines.split(","):
        if name == "vllm" and find_spec("vllm") is None:
            engines[name] = "vLLM is not installed here"
        else:
            engines[name] = (in_vllm if name == "vllm" else in_transformers)(loaded, options)
    found = {
        "command": f"python -m benchmarks.rerouting --engines {options.engines}",
        "demur": demur.__version__,
        "machine": describe_machine(),
        "note": options.note,
        "model": loaded.model_id.as_dict(),
        "read_layer": read_of(loaded).layers[0],
        "blocks": len(loaded.parts.blocks),
        "rounds": options.rounds,
        "clock": options.clock,
        "engines": engines,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rerouting.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (options.out / "rerouting.md").write_text(markdown(found), "utf-8")
    print(json.dumps(found, indent=2) if options.json else markdown(found))


if __name__ == "__main__":
    main()
