"""Measures capture: demur's packed path against the usual loop, and what it does to verdicts.

The usual loop is `model(ids, output_hidden_states=True)`, one prompt at a time, in float32, as one
finds it in papers' code; a second loop does the same in bfloat16. All arms read the same rendered
prompts at the last position and include the check that the packed path makes of itself. Arms
alternate in rounds; a ratio is the median over rounds. Other architectures have random weights of
real shapes: speed does not depend on the values.

Verdicts of the packaged detector on the packed path are compared with those in float32 on the plain
path, over test prompts.

    DEMUR_DATA=FOLDER python -m benchmarks.capture [--rounds 5] [--prompts 512] [--json]
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Olmo2Config,
    Phi3Config,
)

from benchmarks.machine import describe_machine
from benchmarks.shapes import SERVED, SMOLLM2
from demur.core import artifacts
from demur.core.examples import Example
from demur.core.protocols import Detector, whole
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.datasets.demur_data import DemurData
from demur.guard.loading import PRETRAINED_PATH
from demur.modeling.blocks import Parts, find_parts
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel, load

RESULTS = Path(__file__).parent / "results" / "capture.json"
OTHERS: dict[str, Callable[[], Any]] = {
    "GPT-2 124M": GPT2Config,
    "OLMo 2, 135M": lambda: Olmo2Config(**SMOLLM2),
    "Phi-3, 135M": lambda: Phi3Config(**SMOLLM2, pad_token_id=0),
    "Gemma 3 270M": lambda: Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
    ),
    "Qwen2 0.5B": SERVED["0.5B"],
}
NUM_NEAREST = 200
NUM_VERDICTS = 1000
"""Of each label."""

LONGEST_FOR_OTHERS = 512
"""Tokens: Gemma's window."""

Arm = Callable[[], object]


def draw(examples: Sequence[Example], number: int, *, seed: int = 0) -> list[Example]:
    """Return some examples, drawn without replacement."""
    chosen = np.random.default_rng(seed).permutation(len(examples))[:number]
    return [examples[row] for row in chosen]


@torch.inference_mode()
def usual_loop(model: nn.Module, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """Read prompts as one usually does: all hidden states of one prompt after another."""
    states = []
    for prompt in prompts:
        output = model(torch.tensor([prompt.token_ids]), output_hidden_states=True)
        states.append(torch.stack([layer[0, -1] for layer in output.hidden_states]))
    return states


def packed(parts: Parts, layers: int, prompts: Sequence[Prompt]) -> Readings:
    """Read the last position of the first layers of prompts, packed."""
    fast = FastCapture(parts, [CaptureSpec(tuple(range(layers)))], prompts)
    assert fast.is_packed
    return whole(fast.read(prompts))


def rounds_of(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each arm took in each round; arms alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def matrix_rate() -> float:
    """Return what the machine does in bfloat16 matrix products, floating-point operations/s."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    rates = []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * 2048**3 / (time.perf_counter() - started))
    return float(np.median(rates))


def compare(
    exact: nn.Module, half: nn.Module, prompts: Sequence[Prompt], *, rounds: int
) -> dict[str, Any]:
    """Measure one model in float32 and bfloat16."""
    parts = find_parts(half)
    num_layers = len(parts.blocks)
    arms: dict[str, Arm] = {
        "loop, float32": lambda: usual_loop(exact, prompts),
        "loop, bfloat16": lambda: usual_loop(half, prompts),
        "packed, all layers": lambda: packed(parts, num_layers, prompts),
        "packed, first half": lambda: packed(parts, num_layers // 2, prompts),
    }
    few = prompts[:16]
    usual_loop(exact, few)
    packed(parts, num_layers, few)
    seconds = {name: np.array(values) for name, values in rounds_of(arms, rounds).items()}
    loop = seconds["loop, float32"]
    weights = sum(p.numel() for block in parts.blocks for p in block.parameters())
    tokens = sum(len(prompt) for prompt in prompts)
    fast = float(np.median(seconds["packed, all layers"]))
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "rounds": rounds,
        "layers": num_layers,
        "prompts_a_second": {n: float(len(prompts) / np.median(s)) for n, s in seconds.items()},
        "ratio_to_float32_loop": {n: float(np.median(loop / s)) for n, s in seconds.items()},
        "ratios": {n: (loop / s).tolist() for n, s in seconds.items()},
        "share_of_matrix_rate": float(2 * weights * tokens / fast / matrix_rate()),
    }


def verdicts(
    exact: LoadedModel, half: LoadedModel, detector: Detector, threshold: float, data: DemurData
) -> dict[str, Any]:
    """Compare verdicts of the packed path in bfloat16 with those of the plain one in float32."""
    rows = [e for name in data.sets for e in data.load(name, ("test_id",))]
    chosen = [
        example
        for label in ("safe", "unsafe")
        for example in draw([e for e in rows if e.label == label], NUM_VERDICTS)
    ]
    renderer = ChatRenderer(half.tokenizer, name="benchmark")
    prompts = [renderer.render(example.chat) for example in chosen]
    fast = FastCapture(half.parts, detector.reads, prompts)
    scores = detector.decision_function(whole(fast.read(prompts)))
    plain = [capture(exact.parts, [prompt], detector.reads) for prompt in prompts]
    expected = detector.decision_function(Readings.concatenate(plain))
    same: Array = (scores >= threshold) == (expected >= threshold)
    nearest = np.argsort(np.abs(expected - threshold))[:NUM_NEAREST]
    return {
        "prompts": len(prompts),
        "is_packed": fast.is_packed,
        "same_verdict": float(same.mean()),
        "same_verdict_nearest": float(same[nearest].mean()),
        "nearest": NUM_NEAREST,
        "score_spread": float(expected.std()),
        "largest_score_difference": float(np.abs(scores - expected).max()),
        "median_score_difference": float(np.median(np.abs(scores - expected))),
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| model | loop float32, prompts/s | loop bfloat16 | packed, all layers | packed, first "
        "half | of the matrix rate |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results["models"].items():
        rates, ratios = row["prompts_a_second"], row["ratio_to_float32_loop"]
        cells = [f"{rates[arm]:.1f} ({ratios[arm]:.1f}x)" for arm in list(rates)[1:]]
        lines.append(
            f"| {name} | {rates['loop, float32']:.1f} | {' | '.join(cells)} "
            f"| {row['share_of_matrix_rate']:.0%} |"
        )
    found = results["verdicts"]
    lines += [
        "",
        f"Same verdict as in float32: {found['same_verdict']:.2%} of {found['prompts']} prompts, "
        f"{found['same_verdict_nearest']:.1%} of the {found['nearest']} nearest the threshold.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--prompts-of-others", type=int, default=96)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    data = DemurData()
    half, exact = load("embedded", dtype="bfloat16"), load("embedded", dtype="float32")
    renderer = ChatRenderer(half.tokenizer, name="benchmark")
    pool = [e for name in data.sets for e in data.load(name, ("train",), small=True)]
    prompts = [renderer.render(example.chat) for example in draw(pool, options.prompts)]
    artifact = artifacts.read(PRETRAINED_PATH / "smollm2-135m-instruct")
    threshold = artifact.calibration.at(artifact.calibration.default_fpr).threshold
    found = verdicts(exact, half, artifacts.restore(artifact), threshold, data)
    models = {"SmolLM2 135M": compare(exact.model, half.model, prompts, rounds=options.rounds)}
    for name, config in OTHERS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(), dtype=torch.float32).eval()
        few = [p for p in prompts if len(p) <= LONGEST_FOR_OTHERS][: options.prompts_of_others]
        models[name] = compare(model, copy.deepcopy(model).bfloat16(), few, rounds=options.rounds)
    results = {
        "machine": describe_machine(),
        "matrix_rate": matrix_rate(),
        "models": models,
        "verdicts": found,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2) if options.json else table(results))


if __name__ == "__main__":
    main()
