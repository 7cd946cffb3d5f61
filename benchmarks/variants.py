"""What the packaged detector says on variants of its model: number formats, rounding, an adapter.

Each variant reads the same prompts. How many verdicts stay as they are, how many ordinary prompts
are flagged at the shipped threshold, and would the fingerprint let the detector be loaded? Rounding
is symmetric: weights of all linear maps in the blocks by rows, or by groups of 32 for four bits,
and what goes into them by tokens. The adapter is the packaged one, merged into the weights.

    DEMUR_DATA=FOLDER python -m benchmarks.variants [--share 1] [--json]
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.arms import drawn, short_prompts, tell
from benchmarks.machine import describe_machine
from benchmarks.results_files import RESULTS, keep
from benchmarks.variants_report import report
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Dtype, Sampling
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard, fingerprint
from demur.guard.loading import open_detector
from demur.guard.packaged import required_adapter
from demur.guard.routes import FlaggedTo
from demur.metrics.wilson_interval import wilson_interval
from demur.modeling.blocks import find_parts
from demur.modeling.load import LoadedModel, load
from demur.modeling.quiet import quiet
from demur.responders.fixed_reply import FixedReply

SETS: dict[str, dict[str, str]] = {
    "ordinary": {
        "alpaca_eval": "utility",
        "truthfulqa": "utility",
        "gsm8k_test": "utility",
        "mmlu_500": "utility",
        "humaneval": "utility",
    },
    "look_alike": {"xstest": "test_ood", "oktest": "test_ood", "coconot_eval": "test_ood"},
    "unsafe": {
        "strongreject": "test_ood",
        "harmbench": "test_ood",
        "jailbreakbench": "test_ood",
        "malicious_instruct": "test_ood",
        "jbb_artifacts": "test_ood",
    },
}
OF_EACH = 100
GROUP = 32
"""Numbers that share a scale at four bits."""
ROOM = 16
"""Prompts that are read side by side."""


def rounded(values: Tensor, bits: int, *, group: int | None = None) -> Tensor:
    """Return values as symmetric integers of some bits hold them.

    Args:
        values: [..., column].
        bits: 2 or more.
        group: Columns that share a scale; None is a whole row.
    """
    parts = values.float().view(*values.shape[:-1], -1, group or values.shape[-1])
    most = 2 ** (bits - 1) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return torch.mul((parts / scale).round(), scale).flatten(-2).to(values.dtype)


@torch.no_grad()
def quantised(
    loaded: LoadedModel, bits: int, *, group: int | None = None, inputs: int | None = None
) -> LoadedModel:
    """Return a copy of a model whose blocks compute with rounded numbers.

    Args:
        loaded: The model; it stays as it is.
        bits: Of weights.
        group: Weights of a row that share a scale; None is a whole row.
        inputs: Bits of what goes into a linear map, token by token; None leaves it.
    """
    other = _of(loaded, copy.deepcopy(loaded.model))
    for block in other.parts.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rounded(module.weight, bits, group=group))
                if inputs is not None:
                    module.register_forward_pre_hook(partial(_round_input, inputs))
    return other


def _round_input(bits: int, _module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded(given[0], bits), *given[1:])


def merged(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Return a copy of a model with an adapter in its weights."""
    with quiet():
        adapted: Any = PeftModel.from_pretrained(copy.deepcopy(loaded.model), folder)
    return _of(loaded, adapted.merge_and_unload())


def _of(loaded: LoadedModel, model: Any) -> LoadedModel:
    return replace(loaded, model=model, parts=find_parts(model))


def variants(dtype: Dtype) -> dict[str, Callable[[], LoadedModel]]:
    """Return what makes each variant; the first is the model as the detector knows it."""
    plain = load("embedded", dtype=dtype)
    adapter = required_adapter(plain.model_id)
    return {
        "as fitted": lambda: plain,
        "float32": lambda: load("embedded", dtype="float32"),
        "int8 weights": lambda: quantised(plain, 8),
        "int8 weights and inputs": lambda: quantised(plain, 8, inputs=8),
        "int4 weights, groups of 32": lambda: quantised(plain, 4, group=GROUP),
        "the packaged adapter, merged": lambda: merged(plain, adapter),
    }


@dataclass(frozen=True)
class Judged:
    """What the detector says on a variant."""

    scores: Array
    """[prompt]."""
    flagged: Array
    """[prompt]."""
    moved: float
    """How far the fingerprint's scores moved at most, as a share of what is tolerated."""


def judged(loaded: LoadedModel, examples: Sequence[Example]) -> Judged:
    """Let the packaged detector judge prompts on a model, whatever its fingerprint says."""
    engine = TransformersEngine(loaded, max_batch=ROOM)
    opened = open_detector("pretrained", engine, verify=False)
    now = fingerprint.take(engine, opened.detector)["scores"]
    moved = float(np.abs(now - opened.artifact.fingerprint["scores"]).max())
    guard = Guard(
        engine,
        [opened.calibrated()],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    replies = guard.replies([of.chat for of in examples], Sampling(max_tokens=0))
    verdicts = [reply.verdicts[0] for reply in replies]
    return Judged(
        np.array([verdict.score for verdict in verdicts], dtype=float),
        np.array([verdict.flagged for verdict in verdicts]),
        moved / opened.artifact.fingerprint_tolerance,
    )


def row(name: str, of: Judged, plain: Judged, role: Array) -> dict[str, Any]:
    """Return how a variant's verdicts compare with those on the model as fitted.

    Args:
        name: Of the variant.
        of: On it.
        plain: On the model as fitted, same prompts.
        role: Of each prompt, [prompt].
    """
    return {
        "variant": name,
        "fingerprint_moved": of.moved,
        "is_accepted": of.moved <= 1,
        "equal_verdicts": float((of.flagged == plain.flagged).mean()),
        "rank_correlation": float(spearmanr(of.scores, plain.scores).statistic),
        "flagged": {name: _rate(of.flagged[role == name]) for name in SETS},
    }


def _rate(flagged: Array) -> dict[str, Any]:
    interval = wilson_interval(flagged, np.arange(len(flagged)))
    return {"share": float(flagged.mean()), "interval": interval}


def prompts(data: DemurData, *, share: float) -> tuple[list[Example], Array]:
    """Return the prompts and the role of each."""
    found: list[Example] = []
    role: list[str] = []
    for name, sets in SETS.items():
        label = "unsafe" if name == "unsafe" else "safe"
        for source, split in sets.items():
            some = drawn(short_prompts(data, source, split, label), OF_EACH, share=share)
            found += some
            role += [name] * len(some)
    return found, np.array(role)


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts, for a trial")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the report")
    options = parser.parse_args()
    started = time.perf_counter()
    examples, role = prompts(DemurData(), share=options.share)
    found: list[dict[str, Any]] = []
    plain: Judged | None = None
    for name, make in variants(options.dtype).items():
        of = judged(make(), examples)
        plain = plain or of
        found.append(row(name, of, plain, role))
        tell(f"{name}: {found[-1]['equal_verdicts']:.1%} equal verdicts")
    results = {
        "machine": describe_machine(),
        "dtype": str(load("embedded", dtype=options.dtype).model_id.dtype),
        "prompts": {name: int((role == name).sum()) for name in SETS},
        "variants": found,
        "seconds": time.perf_counter() - started,
    }
    keep("variants", results, report(results), folder=options.out, prints_json=options.json)


if __name__ == "__main__":
    main()
