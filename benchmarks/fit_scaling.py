"""Measures fitting: seconds and peak memory of every detector on 1,000, 10,000 and 80,000 prompts.

States are random numbers of the embedded model's shape with a planted direction (texts are random
words with a planted word): neither time nor memory of a fit depends on what prompts say. They are
made a part at a time, as shards come from disk, so that a streamed fit need not hold them; the
seconds of making them are subtracted. Each fit runs in a process of its own, for at most LIMIT
seconds; memory is the growth of the process's peak from before the first reading.

Scoring is measured too: 1,000 prompts, milliseconds a layer.

    python -m benchmarks.fit_scaling [--sizes 1000,10000,80000] [--methods all] [--json]
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from demur.core.protocols import Detector, StreamedDetector, Targets, whole
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.registry import load, methods

RESULTS = Path(__file__).parent / "results" / "fit_scaling.json"
NUM_BLOCKS, D_MODEL = 30, 576
ROWS_A_PART = 256
TOKENS_A_PROMPT = 40
LIMIT_S = 120
NUM_SCORINGS = 9
WORDS = np.array([f"word{number}" for number in range(5000)])
NEEDS_A_FOLDER = frozenset({"sentence_embedding"})
"""Its time is that of the encoder that one gives it."""


@dataclass(frozen=True)
class RandomReadings:
    """Readings of made-up prompts, the same at each pass, made a part at a time."""

    reads: tuple[Read, ...]
    unsafe: Array

    def __iter__(self) -> Iterator[tuple[Array, Readings]]:
        """Yield rows and their readings."""
        for start in range(0, len(self.unsafe), ROWS_A_PART):
            rows = np.arange(start, min(start + ROWS_A_PART, len(self.unsafe)))
            generator = np.random.default_rng(start)
            values = {read: self._values(read, rows, generator) for read in self.reads}
            yield rows, Readings(values)

    def _values(self, read: Read, rows: Array, generator: np.random.Generator) -> Values:
        unsafe = self.unsafe[rows]
        if not isinstance(read, CaptureSpec):
            drawn = WORDS[generator.integers(len(WORDS), size=(len(rows), 12))]
            marked = [
                [*words, "marker"] if harms else words
                for words, harms in zip(drawn, unsafe, strict=True)
            ]
            return tuple(" ".join(words) for words in marked)
        layers = len(read.layers)
        if read.is_pooled:
            states = generator.standard_normal((len(rows), layers, D_MODEL), dtype=np.float32)
            states[unsafe, :, :8] += 1
            return states
        shape = (len(rows), layers, TOKENS_A_PROMPT, D_MODEL)
        tokens = generator.standard_normal(shape, dtype=np.float32)
        tokens[unsafe, :, :, :8] += 1
        return tuple(tokens)


def targets(num_prompts: int) -> Targets:
    """Return labels, ten sources and five categories."""
    generator = np.random.default_rng(0)
    unsafe = generator.random(num_prompts) < 0.5
    source = np.array([f"set{n}" for n in generator.integers(10, size=num_prompts)])
    category = np.where(unsafe, [f"c{n}" for n in generator.integers(5, size=num_prompts)], "")
    return Targets(unsafe, np.arange(num_prompts), source, category)


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit_once(method: str, num_prompts: int) -> dict[str, float]:
    """Fit a method in this process, and return what it took."""
    made: type[Detector] = load("detectors", method)
    detector = made(made.default_reads(NUM_BLOCKS))
    known = targets(num_prompts)
    parts = RandomReadings(detector.reads, known.unsafe)
    first = [next(iter(parts))]
    warm = targets(ROWS_A_PART)
    detector.fit(whole(first), warm, seed=0)  # imports, and what a first call sets up
    before, passes = peak_bytes(), _seconds_of_a_pass(parts)
    started = time.perf_counter()
    if isinstance(detector, StreamedDetector):
        num_passes = 2 if method == "layered_prototypes" else 1
        detector.fit_stream(parts, known, seed=0)
    else:
        num_passes = 1
        detector.fit(whole(parts), known, seed=0)
    seconds = time.perf_counter() - started - num_passes * passes
    peak = peak_bytes() - before
    some = whole([next(iter(RandomReadings(detector.reads, known.unsafe[:1000])))])
    some = Readings.concatenate([some] * 4).take(range(1000))
    scoring = []
    for _ in range(NUM_SCORINGS):
        started = time.perf_counter()
        detector.decision_function(some)
        scoring.append(time.perf_counter() - started)
    layers = sum(len(read.layers) for read in detector.reads if isinstance(read, CaptureSpec))
    return {
        "seconds": max(seconds, 0.0),
        "peak_mb": peak / 1e6,
        "score_1000_ms_a_layer": float(np.median(scoring)) * 1e3 / max(1, layers),
        "state_kb": sum(array.nbytes for array in detector.state().values()) / 1e3,
    }


def _seconds_of_a_pass(parts: RandomReadings) -> float:
    started = time.perf_counter()
    for _ in parts:
        pass
    return time.perf_counter() - started


def _child(method: str, num_prompts: int, pipe: Connection) -> None:
    try:
        pipe.send(fit_once(method, num_prompts))
    except MemoryError:
        pipe.send({"error": "out of memory"})


def measured(method: str, num_prompts: int) -> dict[str, Any]:
    """Fit a method in a process of its own; over the limit it is stopped, and says so."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(method, num_prompts, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(LIMIT_S) else {"error": f"over {LIMIT_S} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        process.kill()
        process.join()


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    sizes = results["sizes"]
    lines = [
        "| detector | streamed | "
        + " | ".join(f"{size:,}: s, MB" for size in sizes)
        + " | scoring 1,000, ms a layer | fitted arrays, kB |",
        "| --- " * (len(sizes) + 4) + "|",
    ]
    for name, row in results["detectors"].items():
        cells = [
            found.get("error") or f"{found['seconds']:.1f}, {found['peak_mb']:.0f}"
            for found in (row["sizes"][str(size)] for size in sizes)
        ]
        fitted = [found for found in row["sizes"].values() if "error" not in found]
        score = f"{fitted[0]['score_1000_ms_a_layer']:.2f}" if fitted else ""
        size = f"{fitted[-1]['state_kb']:.0f}" if fitted else ""
        streamed = "yes" if row["is_streamed"] else "no"
        lines.append(f"| {name} | {streamed} | {' | '.join(cells)} | {score} | {size} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,80000")
    parser.add_argument("--methods", default="all", help="all, or names with commas")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    known = [name for name in methods("detectors") if name not in NEEDS_A_FOLDER]
    names = known if options.methods == "all" else options.methods.split(",")
    sizes = [int(size) for size in options.sizes.split(",")]
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "shape": {"blocks": NUM_BLOCKS, "d_model": D_MODEL, "tokens": TOKENS_A_PROMPT},
        "limit_s": LIMIT_S,
        "sizes": sizes,
        "detectors": {
            name: {
                "is_streamed": issubclass(load("detectors", name), StreamedDetector),
                "sizes": {str(size): measured(name, size) for size in sizes},
            }
            for name in names
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2) if options.json else table(results))


if __name__ == "__main__":
    main()
