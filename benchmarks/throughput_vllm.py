"""Measures what the guard costs inside vLLM: throughput and times, beside vLLM by itself.

Arms, all in one process on the same model: vLLM's `LLMEngine` without taps or readings (`off`), the
same once more (the control), the guarded engine with the packaged detector (`on`), the guarded one
with the part of that detector that reads the last token (`on, last token`), and vLLM's own
extraction of hidden states, where it runs. `--synchronous` adds vLLM by itself with its older
model runner and without asynchronous scheduling, which the plugin for `vllm serve` asks for. They
take turns in rounds, in random order. A round is the same requests for each arm, with 1, 8 or 32
under way at a time and 0%, 1% or 10% flagged; `shared` rounds give all prompts one system message
that the prefix cache holds. Ratios are paired by round.

    .venv-vllm/bin/python -m benchmarks.throughput_vllm [--eager] [--rounds 9] [--max-tokens 32]
        [--streams 1,8,32] [--flagged 0,0.01,0.1] [--no-shared] [--no-native] [--clock processor]
        [--shape 8B] [--synchronous]

`--shape` takes a model of that shape with random weights, such as one of 8B on a GPU, and a
detector of random weights that flags a third of the prompts.

The pooled reads of the packaged detector need all tokens of a prompt, so that `on` does not read
the prefix cache; `on, last token` does.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import vllm
from vllm.v1.engine.llm_engine import LLMEngine

import demur
from benchmarks.alternating import CLOCKS, alternate
from benchmarks.elsewhere import Elsewhere, ElsewhereError
from benchmarks.machine import describe_machine
from benchmarks.serving_checks import nearly_greedy
from benchmarks.shapes import SERVED, shape_folder
from benchmarks.throughput_vllm_report import claims, markdown
from benchmarks.vllm_arms import (
    DETECTORS,
    Arm,
    Guarded,
    Plain,
    gpu_share,
    guarded_engine,
    plain_engine,
    settings_of,
    sizes,
)
from benchmarks.vllm_extracting_arm import ExtractingArm, shared_memory
from benchmarks.vllm_extraction import extracting
from benchmarks.vllm_prompts import (
    Candidates,
    Pool,
    choose,
    flagging_a_third,
    guard_of,
    random_weights,
    shared_text,
)
from benchmarks.vllm_windows import (
    Asked,
    Cell,
    Difference,
    Window,
    Workload,
    cells_of,
    differences,
    problems,
    rates,
    ratios,
    scores_apart,
)
from demur.engines.vllm import VllmEngine
from demur.guard.calibrated import CalibratedDetector
from demur.guard.loading import load_detector
from demur.guard.responding import route_of
from demur.modeling.load import load
from demur.workflows.machine import library_versions

RESULTS = Path(__file__).parent / "results"
OFF, AGAIN, ON, LAST = "off", "off again", "on", "on, last token"
SYNCHRONOUS, NATIVE = "off, synchronous", "vLLM's extraction"
WARM_UPS = 1
RESPONDER = "safety_prompt"


class Bench:
    """The engines, and how they are asked.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        dtype = self.dtype = options.dtype
        if dtype == "auto":
            dtype = self.dtype = load(options.model, device="cpu").model_id.dtype
        self.engine_sizes = sizes(
            options.model,
            dtype,
            max_seqs=max(options.streams),
            max_tokens=options.context,
            is_eager=options.eager,
            max_num_batched_tokens=options.batched_tokens,
            kv_cache_memory_bytes=options.kv_cache_mib << 20,
            **gpu_share(engines=3),
        )
        say("starting vLLM")
        self.plain = plain_engine(**self.engine_sizes)
        say("starting the guarded vLLM")
        self.guarded, self._detector = self._guarded()
        self.off = self._plain_arm(self.plain)
        self.others: dict[str, Arm] = {}
        if options.synchronous:
            say("starting vLLM, synchronous")
            slower = plain_engine(**self.engine_sizes, is_synchronous=True)
            self.others[SYNCHRONOUS] = self._plain_arm(slower)
        self.prompts: dict[bool, tuple[Pool, CalibratedDetector, CalibratedDetector]] = {}
        self.differing: list[Difference] = []

    def _plain_arm(self, engine: LLMEngine) -> Plain:
        return Plain(engine, self.guarded._known, clock=self.options.clock)

    def _guarded(self) -> tuple[VllmEngine, CalibratedDetector]:
        """Return the guarded engine, and its detector; one of random weights flags nothing."""
        options = self.options
        if not options.shape:
            engine = guarded_engine(
                options.model, self.dtype, self.engine_sizes, responder=options.responder
            )
            return engine, load_detector(DETECTORS[0], engine)
        detector, readout = random_weights(options.model)
        engine = guarded_engine(options.model, self.dtype, self.engine_sizes, readouts=[readout])
        return engine, detector

    def extracting(self, folder: str) -> ExtractingArm:
        """Return the arm of vLLM's own extraction.

        Raises:
            ElsewhereError: It does not run here.
        """
        options = self.options
        make = partial(
            extracting,
            self.engine_sizes,
            model=options.model,
            dtype=self.dtype,
            folder=folder,
            clock=options.clock,
        )
        return ExtractingArm(Elsewhere(make))

    def pool(self, *, is_shared: bool) -> tuple[Pool, CalibratedDetector, CalibratedDetector]:
        """Return the prompts with or without a system message, and who tells them apart."""
        if is_shared not in self.prompts:
            options, detector = self.options, self._detector
            asked = Candidates(
                seed=options.seed,
                most_tokens=options.prompt_tokens + is_shared * 2 * options.shared_words,
                system=shared_text(options.shared_words) if is_shared else None,
            )
            if options.shape:
                detector = flagging_a_third(self.guarded, detector, asked)
            pool, part = choose(
                self.guarded,
                detector,
                asked,
                num_ordinary=options.prompts,
                num_flagged=options.prompts // 4,
            )
            self.prompts[is_shared] = pool, detector, part
        return self.prompts[is_shared]

    def arms(self, cell: Cell, native: Arm | None) -> dict[str, Arm]:
        """Return the arms of a cell."""
        _, whole, part = self.pool(is_shared=cell.is_shared)
        found: dict[str, Arm] = {OFF: self.off, AGAIN: self.off, **self.others}
        for name, detector in ((ON, whole), (LAST, part)):
            guard = guard_of(self.guarded, [detector], self.options.responder)
            found[name] = Guarded(self.guarded, guard, clock=self.options.clock)
        return found | ({} if native is None else {NATIVE: native})

    def measure(self, cell: Cell, native: Arm | None) -> dict[str, Any]:
        """Return what came of a cell."""
        options, (pool, _, _) = self.options, self.pool(is_shared=cell.is_shared)
        arms = self.arms(cell, native)
        workload = Workload(
            pool.ordinary,
            pool.flagged,
            cell.share,
            per_window=max(
                options.least,
                cell.streams * options.per_stream,
                ceil(1 / (cell.share * options.rounds)) if cell.share else 0,
            ),
            windows=options.rounds,
            max_tokens=options.max_tokens,
            seed=options.seed,
        )
        asked = [workload.requests(number) for number in range(options.rounds)]
        windows: dict[str, list[Window]] = {name: [] for name in arms}
        counts: dict[str, dict[str, int]] = {}

        def turn(name: str) -> None:
            """Run one window; the first one of an arm warms up, and is the one that is counted."""
            arm, number = arms[name], max(len(windows[name]) - WARM_UPS, 0)
            arm.reset()
            if name in counts:
                windows[name].append(arm.ask(asked[number], streams=cell.streams))
            else:
                window, counts[name] = arm.count(asked[number], streams=cell.streams)
                windows[name].append(window)

        turns: dict[str, Callable[[], object]] = {name: partial(turn, name) for name in arms}
        alternate(turns, rounds=options.rounds, seed=options.seed, warm_ups=WARM_UPS)
        timed = {name: of[WARM_UPS:] for name, of in windows.items()}
        return {
            "name": cell.name,
            **vars(cell),
            "requests": sum(map(len, asked)),
            "flagged": sum(one.is_flagged for of in asked for one in of),
            "scores_apart": scores_apart(timed[NATIVE], timed[ON]) if native else None,
            "arms": {
                name: {
                    **rates(asked, of),
                    "of_one_window": counts[name],
                    **self._checked(name, asked, of, timed[OFF]),
                }
                for name, of in timed.items()
            },
            "ratios": {
                f"{name} / {OFF}": ratios(asked, of, timed[OFF])
                for name, of in timed.items()
                if name != OFF
            },
        }

    def _checked(
        self,
        name: str,
        asked: Sequence[Sequence[Asked]],
        windows: Sequence[Window],
        others: Sequence[Window],
    ) -> dict[str, Any]:
        """Hold an arm's replies against those of the unguarded one, and look for what is wrong."""
        is_guarded = name in (ON, LAST)
        wrong, differing, num_scored = [], [], 0
        for of, window, other in zip(asked, windows, others, strict=True):
            wrong += problems(of, window, is_guarded=is_guarded)
            differing += differences(of, window, other)
            num_scored += sum(answer.is_scored for answer in window.answers.values())
        self.differing += differing
        return {
            "scored": num_scored if is_guarded else None,
            "problems": wrong[:10],
            "num_problems": len(wrong),
            "replies_that_differ": len(differing),
        }


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return all results."""
    started = time.perf_counter()
    bench = Bench(options)
    with ExitStack() as stack:
        native, said = None, "it was not asked for"
        if options.native:
            say("starting vLLM's own extraction")
            in_memory = tempfile.TemporaryDirectory(prefix="demur-states-", dir=shared_memory())
            try:
                native = bench.extracting(stack.enter_context(in_memory))
                stack.callback(native.close)
                said = native.how_it_runs()
            except ElsewhereError as error:
                said = f"it was not measured: {error}"
        cells = []
        for cell in cells_of(options.streams, options.flagged, is_shared=options.shared):
            say(cell.name)
            cells.append(bench.measure(cell, native))
            say(json.dumps(cells[-1]["ratios"]))
    return {
        "command": "python -m benchmarks.throughput_vllm"
        + " --eager" * options.eager
        + f" --responder {route_of(options.responder)}" * (options.responder != RESPONDER)
        + f" --shape {options.shape}" * bool(options.shape),
        "demur": demur.__version__,
        "versions": {**library_versions("torch", "transformers"), "vllm": vllm.__version__},
        "machine": describe_machine(),
        "note": options.note,
        "model": bench.guarded.model_id.as_dict(),
        "asked": {
            **{name: value for name, value in vars(options).items() if name != "out"},
            "model": Path(options.model).name,
            "responder": route_of(options.responder),
        },
        "settings": {OFF: settings_of(bench.plain), ON: settings_of(bench.guarded._engine)},
        "extraction": said,
        "cells": cells,
        "nearly_greedy": nearly_greedy(
            [
                (bench.off.render(of.asked), ids)
                for of in bench.differing
                for ids in (of.token_ids, of.other_ids)
            ],
            model=options.model,
            dtype=bench.dtype,
            seed=options.seed,
        ),
        "claims": claims(cells),
        "seconds": round(time.perf_counter() - started),
    }


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = (
        ("rounds", 5, "of all arms, in random order"),
        ("per-stream", 1, "requests in a round, for each one under way at a time"),
        ("least", 4, "requests in a round"),
        ("max-tokens", 12, "of a reply"),
        ("prompts", 64, "to draw from"),
        ("prompt-tokens", 120, "of a prompt at most: below a block of the prefix cache"),
        ("shared-words", 160, "of the system message that prompts share"),
        ("batched-tokens", 256, "of a step of vLLM: longer prompts come in chunks"),
        ("context", 1024, "of prompt and reply together"),
        ("kv-cache-mib", 512, "of each engine"),
        ("seed", 0, "of prompts and orders"),
    )
    for name, default, about in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    parser.add_argument("--streams", type=_numbers(int), default=[1, 8, 32])
    parser.add_argument("--flagged", type=_numbers(float), default=[0.0, 0.01, 0.1])
    parser.add_argument(
        "--responder", default=RESPONDER, help="of flagged ones: any that vLLM runs"
    )
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument(
        "--shape", choices=list(SERVED), help="a model and a detector of random weights instead"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--synchronous", action="store_true", help="one arm more")
    parser.add_argument("--native", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--shared", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--note", default="", help="on the machine, such as what else runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args()
    if options.shape:
        options.model, options.native = str(shape_folder(options.shape)), False
    return options


def _numbers(of: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [of(part) for part in text.split(",")]


def main() -> None:
    """Run the benchmark and write its results."""
    options = parsed()
    found = run(options)
    page = markdown(found)
    name = f"throughput_vllm{'_eager' * options.eager}"
    if options.shape:
        name += f"_{options.shape}"
    if options.responder != RESPONDER:
        name += f"_{route_of(options.responder)}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (options.out / f"{name}.md").write_text(page, encoding="utf-8")
    print(json.dumps(found, indent=2) if options.json else page)


if __name__ == "__main__":
    main()
