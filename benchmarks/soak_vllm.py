"""Sends the guarded vLLM engine thousands of mixed requests, and looks at what came of each.

Prompts of many lengths, some in chunks and some with a cached prefix, replies of 4 to 8 tokens, a
tenth flagged, and clients that leave: while they wait, while their prompt is read, or in
mid-reply. Each reply is held against the one that its prompt got alone (`serving_checks`), the
others against the responder's text. None may be lost, mixed up or unscored.

    .venv-vllm/bin/python -m benchmarks.soak_vllm [--requests 5000] [--eager]
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vllm

import demur
from benchmarks.machine import describe_machine
from benchmarks.serving_checks import MARGIN, forced_gap
from benchmarks.soak_vllm_checks import FEWEST, MOST, Check, Known, Vanishing, distinct, power
from benchmarks.vllm_arms import DETECTORS, Guarded, guarded_engine, settings_of, sizes
from benchmarks.vllm_prompts import Candidates, choose, guard_of, shared_text
from benchmarks.vllm_steps import counting
from benchmarks.vllm_windows import Asked
from demur.core.protocols import Done, Request, never
from demur.core.types import Chat, Sampling
from demur.guard import Guard
from demur.guard.exchange import Exchange
from demur.guard.loading import load_detector
from demur.modeling.load import load
from demur.responders.fixed_reply import FixedReply
from demur.workflows.machine import library_versions

RESULTS = Path(__file__).parent / "results"
WARM = 0.2
"""Share of the requests after which memory is looked at for the first time."""


class Soak:
    """The engine, the prompts and what they get alone.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loaded = load(options.model, dtype=options.dtype)
        self.engine = guarded_engine(
            options.model,
            self.loaded.model_id.dtype,
            sizes(
                options.model,
                self.loaded.model_id.dtype,
                max_seqs=options.streams,
                max_tokens=1024,
                is_eager=options.eager,
                max_num_batched_tokens=options.batched_tokens,
                kv_cache_memory_bytes=options.kv_cache_mib << 20,
            ),
        )
        self.known: list[Known] = []
        self.flagged: list[tuple[Chat, Guard]] = []
        detector = load_detector(DETECTORS[0], self.engine)
        for system in (None, shared_text(options.shared_words)):
            pool, part = choose(
                self.engine,
                detector,
                Candidates(
                    seed=options.seed,
                    most_tokens=256 if system is None else 256 + 2 * options.shared_words,
                    system=system,
                ),
                num_ordinary=options.prompts,
                num_flagged=options.prompts // 4,
            )
            # With a shared prefix the part alone judges: it may read the prefix cache.
            guard = guard_of(self.engine, [detector if system is None else part], "fixed_reply")
            self.known += self._alone(guard, pool.ordinary)
            self.flagged += [(chat, guard) for chat in pool.flagged]
        self.known = distinct(self.known)
        self.check = Check(self.known, self._gap, FixedReply().text)

    def _alone(self, guard: Guard, chats: Sequence[Chat]) -> list[Known]:
        """Return what each chat gets when nothing else is under way."""
        asked = [Asked(str(n), chat, False, MOST) for n, chat in enumerate(chats)]
        window = Guarded(self.engine, guard).ask(asked, streams=1)
        return [Known(one.chat, guard, tuple(window.answers[one.id].token_ids)) for one in asked]

    def _gap(self, chat: Chat, token_ids: tuple[int, ...]) -> float:
        prompt = self.engine.render(chat)
        return forced_gap(self.loaded.model, prompt.token_ids, token_ids)

    def run(self) -> dict[str, Any]:
        """Send all requests, and return what came of them."""
        exchanges: dict[str, Exchange] = {}
        reasons: dict[str, list[str]] = defaultdict(list)
        num_done = 0
        memory: list[float] = []
        started = time.perf_counter()
        with counting(self.engine._engine) as steps:
            for event in self.engine.taking(self.options.streams).run(self._requests(exchanges)):
                exchanges[event.id].take(event)
                if isinstance(event, Done):
                    reasons[event.id].append(event.reason)
                    num_done += 1
                    if num_done in (int(WARM * self.options.requests), self.options.requests):
                        memory.append(rss_mb())
                    if num_done % 500 == 0:
                        print(f"{num_done} requests", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - started
        for request_id, exchange in exchanges.items():
            self.check.take(request_id, exchange, reasons[request_id])
        self.check.judge()
        return {
            **self.check.as_dict(),
            "requests": self.options.requests,
            "seconds": round(seconds),
            "requests_per_s": round(self.options.requests / seconds, 2),
            "steps": steps.as_dict(),
            "unfinished_in_vllm": self.engine._engine.get_num_unfinished_requests(),
            "followed_by_the_worker": len(self.engine.reader._followed),
            "memory_mb": [round(mb, 1) for mb in memory],
        }

    def _requests(self, exchanges: dict[str, Exchange]) -> Iterator[Request]:
        """Yield requests of all kinds, in random order."""
        options, generator = self.options, np.random.default_rng(self.options.seed)
        for number in range(options.requests):
            request_id, draw = str(number), generator.random()
            is_flagged = draw < options.flagged
            is_vanishing = draw > 1 - options.vanishing
            place = int(generator.integers(len(self.flagged if is_flagged else self.known)))
            of = self.known[place]
            chat, guard = self.flagged[place] if is_flagged else (of.chat, of.guard)
            vanishing = Vanishing(int(generator.integers(1, MOST))) if is_vanishing else None
            exchange = guard.open(
                chat,
                Sampling(max_tokens=int(generator.integers(FEWEST, MOST + 1))),
                request_id=request_id,
                is_abandoned=vanishing or never,
                wants_logprobs=False,
            )
            exchanges[request_id] = exchange
            self.check.expect(request_id, None if is_flagged else place, vanishing)
            if exchange.request is not None:
                yield exchange.request


def rss_mb() -> float:
    """Return the memory that this process holds (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def markdown(found: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine, asked, soak = found["machine"], found["asked"], found["soak"]
    counts = "\n".join(f"| {name} | {value} |" for name, value in soak["counts"].items())
    steps = "\n".join(f"| {name.replace('_', ' ')} | {n} |" for name, n in soak["steps"].items())
    wrong = "\n".join(f"- {problem}" for problem in soak["problems"]) or "None."
    of = found["power"]
    return f"""# A soak of the guarded vLLM engine

`{found["command"]}` on {machine["cores"]} cores of {machine["processor"]}, \
{machine["memory_gib"]} GiB. Model {found["model"]["name"]} in {found["model"]["dtype"]}, \
compilation {found["settings"]["compilation"]}, {asked["streams"]} under way at a time, \
{asked["batched_tokens"]} tokens a step, seed {asked["seed"]}.

{soak["requests"]} requests in {soak["seconds"]} s: {asked["flagged"]:.0%} flagged, \
{asked["vanishing"]:.0%} whose clients leave, half of the ordinary ones behind one long system \
message. Replies have {FEWEST} to {MOST} tokens.

| answers | |
| --- | --- |
{counts}
| **lost, mixed up or unscored** | **{soak["num_problems"]}** |
| still under way in vLLM at the end | {soak["unfinished_in_vllm"]} |

Problems: {wrong}

| what vLLM computed | |
| --- | --- |
{steps}

## How replies are checked

Each ordinary prompt was asked alone first; in the soak its reply had to be the same, token for \
token, or, since bfloat16 rounds otherwise in a batch, each of its tokens had to be less than \
{MARGIN} logits below the largest one behind its own prompt in transformers (the furthest was \
{soak["largest_gap"]:.2f}). All known replies differ within their first {FEWEST} tokens. Of \
{of["tried"]} replies of other prompts the second rule alone finds {of["caught"]}.

Memory: {" MB, then ".join(f"{mb:.0f}" for mb in soak["memory_mb"])} MB, after {WARM:.0%} and at \
the end.
"""


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = (
        ("requests", 5000, "in all"),
        ("streams", 32, "under way at a time"),
        ("prompts", 48, "ordinary ones, with and without a shared prefix each"),
        ("shared-words", 160, "of the system message that prompts share"),
        ("batched-tokens", 256, "of a step of vLLM: longer prompts come in chunks"),
        ("kv-cache-mib", 96, "of the engine: few, so that requests wait for each other"),
        ("mixed", 100, "replies of other prompts, to try the check on"),
        ("seed", 0, "of the requests"),
    )
    for name, default, about in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    parser.add_argument("--flagged", type=float, default=0.10, help="share of the requests")
    parser.add_argument("--vanishing", type=float, default=0.05, help="share of the requests")
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser.parse_args()


def main() -> None:
    """Run the soak and write its results."""
    options = parsed()
    soak = Soak(options)
    found = {
        "command": f"python -m benchmarks.soak_vllm --requests {options.requests}"
        + " --eager" * options.eager,
        "demur": demur.__version__,
        "versions": {**library_versions("torch", "transformers"), "vllm": vllm.__version__},
        "machine": describe_machine(),
        "model": soak.engine.model_id.as_dict(),
        "asked": {name: value for name, value in vars(options).items() if name != "out"},
        "settings": settings_of(soak.engine._engine),
        "prompts": {"ordinary": len(soak.known), "flagged": len(soak.flagged)},
        "soak": soak.run(),
        "power": power(soak.known, soak._gap, num=options.mixed, seed=options.seed),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak_vllm.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (options.out / "soak_vllm.md").write_text(markdown(found), "utf-8")
    print(json.dumps(found, indent=2) if options.json else markdown(found))


if __name__ == "__main__":
    main()
