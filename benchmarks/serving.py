"""Measures the server under load: a soak, its memory, its times, and its throughput beside others.

`demur serve` runs on the embedded model as a process of its own; 32 clients stream from it. Every
complete reply is held against its own prompt (`serving_checks`). Then the same load goes, in
alternating windows, to the guarded server, the unguarded one (twice: the control), one that watches
replies too, and `transformers serve`.

    python -m benchmarks.serving [--transformers PATH] [--soak 180] [--rounds 5] [--json]

Takes forty minutes, and needs a quiet machine and Linux.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.serving_checks import MARGIN, ForcedReplies, ReplyCheck, mix_ups
from benchmarks.serving_load import JSON, Load, Mix, apply_load, on_one_core
from benchmarks.serving_prompts import Prompts, choose, malformed
from benchmarks.serving_report import markdown
from benchmarks.serving_servers import (
    Kind,
    NoServerError,
    Server,
    demur_kinds,
    left_over,
    rival_kinds,
    serving,
    settle,
)
from benchmarks.serving_soak import Verdicts, steady_memory
from benchmarks.serving_windows import TokenCount, Work, newest, paired, summary
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.modeling.load import EMBEDDED_NAME
from demur.responders.fixed_reply import FixedReply

RESULTS = Path(__file__).parent / "results"
MEMORY_OVER_S = 10.0
WINDOW_WITHIN_S = 600.0
AGAIN = "unguarded again"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    clients: int
    max_batch: int
    num_prompts: int
    warm_s: float
    soak_s: float
    one_client_s: float
    rounds: int
    rival_rounds: int
    parts: int
    """Of a window; the arms take turns by parts."""
    per_client: int
    """Requests of each client in a part."""
    num_mixed: int
    seed: int
    margin: float = MARGIN


class Bench:
    """The prompts, and how servers are asked.

    Args:
        asked: By the command line.
        log: Where the servers' output goes.
    """

    def __init__(self, asked: Asked, log: IO[bytes]) -> None:
        self.asked = asked
        self.log = log
        torch.set_num_threads(1)  # replies alone gain little of a second one
        self.engine = TransformersEngine.load("embedded")
        self.prompts: Prompts = choose(
            self.engine,
            Guard.load(self.engine),
            num_ordinary=asked.num_prompts,
            num_flagged=asked.num_prompts // 2,
            seed=asked.seed,
        )
        self.judge = ForcedReplies(self.engine, self.prompts.known)

    @property
    def count(self) -> TokenCount:
        """Counts a text's tokens."""
        return self.judge.count

    def soak(self, server: Server) -> dict[str, Any]:
        """Load a server for long, and judge each answer."""
        asked = self.asked
        samples: list[tuple[float, float]] = []
        mix = Mix(
            self.prompts.bodies(EMBEDDED_NAME, counts=True),
            self.prompts.flagged_bodies(EMBEDDED_NAME),
            malformed(EMBEDDED_NAME),
            share_flagged=0.10,
            share_malformed=0.01,
            share_vanishing=0.05,
        )
        load = loaded(
            apply_load(
                server.chat_url,
                mix,
                clients=asked.clients,
                seconds=asked.warm_s + asked.soak_s,
                seed=asked.seed,
                every_s=(1.0, lambda: samples.append((time.perf_counter(), server.rss_mb()))),
            )
        )
        verdicts = Verdicts(self._check(), FixedReply().text, "fixed_reply")
        verdicts.take(load)
        return {
            **verdicts.as_dict(),
            "clients_cpu_share": round(load.cpu_share, 3),
            "left_over": left_over(server),
            "memory_mb": self._memory(samples, load),
        }

    def _memory(self, samples: Sequence[tuple[float, float]], load: Load) -> dict[str, float]:
        over_s = min(MEMORY_OVER_S, self.asked.warm_s)
        warm = steady_memory(samples, at=load.began_at + self.asked.warm_s, over_s=over_s)
        end = steady_memory(samples, at=load.ended_at, over_s=over_s)
        return {
            "after_warm_up": round(warm, 1),
            "at_end": round(end, 1),
            "change": round(end / warm - 1, 4),
        }

    def _check(self) -> ReplyCheck:
        return ReplyCheck(self.prompts.known, self.judge)

    def one_client(self, server: Server) -> dict[str, Any]:
        """Return the times that a client sees who is alone."""
        mix = Mix(self.prompts.bodies(EMBEDDED_NAME, counts=True))
        asked = self.asked
        load = loaded(
            apply_load(server.chat_url, mix, clients=1, seconds=asked.one_client_s, seed=asked.seed)
        )
        verdicts = Verdicts(self._check(), FixedReply().text, "fixed_reply")
        verdicts.take(load)
        return verdicts.as_dict()

    def one_reply(self, server: Server) -> None:
        """Have a server answer once, so that it has loaded what it loads late.

        Raises:
            NoServerError: It does not.
        """
        (body,) = self.prompts.bodies(server.kind.model, counts=False)[:1]
        try:
            httpx.post(server.chat_url, content=body, headers=JSON, trust_env=False, timeout=60)
        except httpx.HTTPError as error:
            raise NoServerError(f"it did not answer: {type(error).__name__}") from error

    def window(self, server: Server, *, seed: int) -> Work:
        """Return how many tokens reach the clients in one part of a window, and in what time."""
        asked = self.asked
        mix = Mix(self.prompts.bodies(server.kind.model, counts=False))
        load = loaded(
            apply_load(
                server.chat_url,
                mix,
                clients=asked.clients,
                seconds=WINDOW_WITHIN_S,
                seed=seed,
                per_client=asked.per_client,
            )
        )
        settle(server)
        return Work.of(load, count=self.count)

    def rounds(self, arms: Mapping[str, Server]) -> dict[str, list[float]]:
        """Return the windows of each arm."""
        generator = np.random.default_rng(self.asked.seed)
        windows: dict[str, list[float]] = {arm: [] for arm in arms}
        for round_ in range(self.asked.rounds):
            done = dict.fromkeys(arms, Work())
            for part in range(self.asked.parts):
                seed = self.asked.seed + 1 + round_ * self.asked.parts + part
                for arm in generator.permutation(list(arms)):
                    done[arm] += self.window(arms[arm], seed=seed)
            for arm, work in done.items():
                windows[arm].append(work.tokens_per_s)
            say(f"round {round_ + 1}: {newest(windows)}")
        return windows

    def power(self) -> dict[str, dict[str, int]]:
        """Return how many replies that were spoiled on purpose the check catches."""
        found: dict[str, dict[str, int]] = {}
        asked = self.asked
        for mixed in mix_ups(self.prompts.known, num_each=asked.num_mixed, seed=asked.seed):
            of = found.setdefault(mixed.kind, {"mixed": 0, "by_greediness": 0, "by_all": 0})
            is_caught = self.judge(mixed.number, mixed.pieces, mixed.is_ended) >= MARGIN
            of["mixed"] += 1
            of["by_greediness"] += is_caught
            of["by_all"] += is_caught or mixed.has_another_count
        return found


def loaded(clients: Coroutine[Any, Any, Load]) -> Load:
    """Run clients to their end, on one core."""
    with on_one_core():
        return asyncio.run(clients)


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def compare(bench: Bench, rivals: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the throughput of all arms, and their ratios."""
    kinds = demur_kinds(max_batch=bench.asked.max_batch)
    with ExitStack() as stack:
        arms = {name: stack.enter_context(serving(kind, bench.log)) for name, kind in kinds.items()}
        arms[AGAIN] = arms["unguarded"]
        warm(bench, arms)
        windows = bench.rounds(arms)
    over = ("guarded", AGAIN, "replies watched")
    ratios = {f"{arm} / unguarded": paired(windows, over=arm, under="unguarded") for arm in over}
    found = summary(windows)
    skipped: list[str] = []
    with serving(kinds["unguarded"], bench.log) as ours:
        warm(bench, {"unguarded": ours})
        for name, kind in rivals.items():
            try:
                windows = beside(bench, ours, kind)
            except NoServerError as error:
                skipped.append(f"{name} was not measured: {error}")
                continue
            found |= summary(windows)
            ratios[f"unguarded / {name}"] = paired(windows, over=beside_name(kind), under=name)
    return {"arms": found, "ratios": ratios, "skipped": skipped}


def beside_name(rival: Kind) -> str:
    """Return what our windows between a rival's are called."""
    return f"unguarded, beside {rival.name}"


def beside(bench: Bench, ours: Server, rival: Kind) -> dict[str, list[float]]:
    """Return windows of a rival and of our server in turn.

    The rival is started anew for each window: it goes on with requests whose clients have left,
    and so would disturb the next window.

    Raises:
        NoServerError: It does not start, or sends no tokens.
    """
    windows: dict[str, list[float]] = {rival.name: [], beside_name(rival): []}
    for round_ in range(bench.asked.rival_rounds):
        seed = bench.asked.seed + 1 + round_
        with serving(rival, bench.log) as theirs:
            bench.one_reply(theirs)
            windows[rival.name].append(bench.window(theirs, seed=seed).tokens_per_s)
        windows[beside_name(rival)].append(bench.window(ours, seed=seed).tokens_per_s)
        say(f"round {round_ + 1}: {newest(windows)}")
        if not windows[rival.name][-1]:
            raise NoServerError("it sent no tokens")
    return windows


def warm(bench: Bench, arms: Mapping[str, Server]) -> None:
    """Have each server answer a little.

    Raises:
        NoServerError: One sends no tokens.
    """
    for name, server in arms.items():
        if not bench.window(server, seed=bench.asked.seed).num_tokens:
            raise NoServerError(f"{name} sent no tokens")


def measure(
    asked: Asked, rivals: Mapping[str, Kind], log: IO[bytes], *, earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return all results; the throughput is that of an earlier run, where one is given."""
    load_average = [round(value, 2) for value in os.getloadavg()]
    say("choosing prompts")
    bench = Bench(asked, log)
    power = bench.power()
    say("soaking")
    with serving(demur_kinds(max_batch=asked.max_batch)["guarded"], log) as server:
        soak = bench.soak(server)
        one_client = bench.one_client(server)
    say(f"{soak['num_problems']} problems {soak['problems'][:3]}")
    windows = compare(bench, rivals) if earlier is None else earlier["windows"]
    return {
        "command": "python -m benchmarks.serving",
        "machine": describe_machine(),
        "model": bench.engine.model_id.as_dict(),
        "load_average": load_average,
        "asked": vars(asked),
        "prompts": {
            "ordinary": len(bench.prompts.ordinary),
            "flagged": len(bench.prompts.flagged),
            "left_out": bench.prompts.num_left_out,
        },
        "num_runs": 1 if earlier is None else 2,
        "soak": soak,
        "one_client": one_client,
        "power": power,
        "windows": windows,
    }


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers: Sequence[tuple[str, Callable[[str], float], float]] = (
        ("clients", int, 32),
        ("max-batch", int, 32),
        ("prompts", int, 32),
        ("warm", float, 60.0),
        ("soak", float, 180.0),
        ("one-client", float, 15.0),
        ("rounds", int, 5),
        ("rival-rounds", int, 3),
        ("parts", int, 3),
        ("per-client", int, 1),
        ("mixed", int, 60),
        ("seed", int, 0),
    )
    for name, type_, default in numbers:
        parser.add_argument(f"--{name}", type=type_, default=default)
    beside = Path(sys.executable).with_name("transformers")
    parser.add_argument("--transformers", type=Path, default=beside, help="its command")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep-windows", action="store_true", help="of the results in --out")
    parser.add_argument("--quiet", default="nothing else ran", help="what to say of the machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and write its results."""
    options = parsed()
    asked = Asked(
        clients=options.clients,
        max_batch=options.max_batch,
        num_prompts=options.prompts,
        warm_s=options.warm,
        soak_s=options.soak,
        one_client_s=options.one_client,
        rounds=options.rounds,
        rival_rounds=options.rival_rounds,
        parts=options.parts,
        per_client=options.per_client,
        num_mixed=options.mixed,
        seed=options.seed,
    )
    options.out.mkdir(exist_ok=True, parents=True)
    results = options.out / "serving.json"
    earlier = json.loads(results.read_text()) if options.keep_windows else None
    with (options.out / "serving.log").open("wb") as log:
        found = measure(asked, rival_kinds(options.transformers), log, earlier=earlier)
    found["quiet"] = options.quiet
    results.write_text(json.dumps(found, indent=2) + "\n")
    page = markdown(found)
    (options.out / "serving.md").write_text(page)
    print(json.dumps(found, indent=2) if options.json else page)


if __name__ == "__main__":
    main()
