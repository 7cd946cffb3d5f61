"""SafeSwitch end to end: its second stage, its refusal head, and what a gate makes of both.

DEMUR_DATA=FOLDER python -m benchmarks.safeswitch [--model embedded --detector pretrained]
    [--share 1] [--json]

Both options may be repeated: a detector a model, of which it is stage one. What an earlier run
found of other models stays in the results.

The head learns from prompts and refusals written for demur, the stages from prompts of public sets
and demur's own. All is measured on sets that nothing was fitted on; replies are greedy.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import Arms, held_out_cases
from benchmarks.artifacts import trained_by_default
from benchmarks.machine import describe_machine
from benchmarks.results_files import RESULTS, keep
from benchmarks.safeswitch_report import report
from benchmarks.safeswitch_stages import (
    FPR,
    FRONT,
    REACH,
    Gate,
    are_varied,
    counts,
    gates_of,
    labelled,
    probe,
    under_two_systems,
    unsafe_to_learn_from,
)
from demur.core.readings import Array
from demur.core.reads import PilotTokens
from demur.core.trained import Trained
from demur.core.types import Chat
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.guard.loading import find_artifact
from demur.metrics.auroc import auroc
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.modeling.chat import ChatRenderer
from demur.modeling.tentative import TentativeReads
from demur.studies._arms import Arm, arm_rows, paired_change
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes

MAX_TOKENS = 48
NUM_TIMED = 20


def measure(model: str, detector: str, *, share: float, num_learnt: int) -> dict[str, Any]:
    """Measure one model.

    Args:
        model: As `--model` takes it.
        detector: Stage one, as `--detector` takes it.
        share: Of the prompts, over 0 to 1.
        num_learnt: Unsafe prompts whose own replies stage two learns from.
    """
    started = time.perf_counter()
    data = DemurData()
    cases = held_out_cases(data, share=share)
    arms = Arms(model, cases, detector=detector, max_tokens=MAX_TOKENS)
    stage_one = find_artifact(detector, arms.engine.model_id)
    base = arms.base()
    learnt = labelled(arms, unsafe_to_learn_from(data, most=num_learnt))
    tested = labelled(arms, [cases.examples[row] for row in cases.rows("unsafe")])
    found: dict[str, Any] = {
        "model": arms.engine.model_id.as_dict(),
        "share": share,
        "stage_one": stage_one.name,
        "own_replies": {"learnt": counts(learnt), "tested": counts(tested)},
        "stage_two": {},
    }
    name, replies = "as it is", [*learnt, *tested]
    if not are_varied(replies):
        some = unsafe_to_learn_from(data, most=num_learnt // 2)
        name, replies = "under two system prompts", labelled(arms, under_two_systems(some))
        found["own_replies"]["under two system prompts"] = counts(replies)
        learnt = replies
    if are_varied(replies):
        found["stage_two"][name] = probe(arms.engine, replies)
    found["pilot"] = _pilot_cost(arms.engine, arms.chats[:NUM_TIMED])
    head = trained_by_default("refusal_head", model)
    found["head"] = _about(head)
    always = arms.under(f"refusal_head:{head}")
    gates = gates_of(arms.engine, stage_one, learnt, cases.examples)
    found |= _compared(base, always, gates, cases)
    found["seconds"] = time.perf_counter() - started
    return found


def _pilot_cost(engine: TransformersEngine, chats: Sequence[Chat]) -> dict[str, float]:
    """Return what three tokens of a reply cost beside the prompt, in milliseconds a prompt."""
    renderer = ChatRenderer.of(engine.loaded)
    reads = TentativeReads(engine.loaded, renderer)
    read = PilotTokens(3, (-1,), "final_norm")
    plain, begun = [], []
    for chat in chats:
        ids = renderer.render(chat).token_ids
        started = time.perf_counter()
        engine.loaded.last_logits(ids)
        between = time.perf_counter()
        reads.values_of(read, [chat])
        plain.append(between - started)
        begun.append(time.perf_counter() - between)
    prompt, whole = 1000 * float(np.median(plain)), 1000 * float(np.median(begun))
    return {"prompt_ms": prompt, "with_pilot_ms": whole}


def _about(head: Path) -> dict[str, Any]:
    """Return what a refusal head says of itself."""
    provenance = Trained.read(head).provenance
    return {
        "hyper_parameters": provenance["hyper_parameters"],
        "metrics": provenance["metrics"],
        "megabytes": (head / "model.safetensors").stat().st_size / 1e6,
    }


def _compared(
    base: Outcomes, always: Outcomes, gates: Sequence[Gate], cases: Cases
) -> dict[str, Any]:
    """Return the rates of all arms, and what the gates keep and spare."""
    unsafe, safe = cases.role == "unsafe", cases.role != "unsafe"
    every = np.ones(len(unsafe), bool)
    arms = [Arm("base", base), Arm("head always on", always, every)]
    arms += [Arm(gate.name, base.where(gate.flagged, always), gate.flagged) for gate in gates]
    arms.append(Arm("oracle", base.where(unsafe, always), unsafe))
    rows = [row for arm in arms for row in arm_rows("refusal_head", arm, base, cases)]
    complied = base.outcome == "complied"
    return {
        "arms": rows,
        "gates": [
            {
                "name": gate.name,
                "recall": float(gate.flagged[unsafe].mean()),
                "recall_of_complied": float(gate.flagged[unsafe & complied].mean()),
                "asked": {
                    role: float(gate.escalated[cases.rows(role)].mean())
                    for role in ("unsafe", "look_alike", "ordinary")
                },
                "auroc_unsafe_generation": _auroc(gate.scores, unsafe & complied, cases.group),
                **_kept(base, always, gate.flagged, unsafe=unsafe, safe=safe, group=cases.group),
                "front": [_point(base, always, gate, fpr, cases) for fpr in FRONT],
            }
            for gate in gates
        ],
        "head_gain": _change(always, base, "refused", unsafe, cases.group),
    }


def _point(
    base: Outcomes, always: Outcomes, gate: Gate, fpr: float, cases: Cases
) -> dict[str, float]:
    """Return what a gate makes of unsafe and safe prompts at some rate."""
    flagged = gate.flagged_at(fpr)
    gated = base.where(flagged, always)
    unsafe = cases.rows("unsafe")
    before, after = (float((arm.outcome[unsafe] == "complied").mean()) for arm in (base, gated))
    found = {"fpr": fpr, "recall": float(flagged[unsafe].mean()), "complied": after}
    found["complied_down"] = 1 - after / before if before else 0.0
    for role in ("look_alike", "ordinary"):
        rows = cases.rows(role)
        more = (gated.outcome[rows] == "refused").mean() - (base.outcome[rows] == "refused").mean()
        found[f"more_refused_{role}"] = float(more)
    return found


def _kept(
    base: Outcomes, always: Outcomes, flagged: Array, *, unsafe: Array, safe: Array, group: Array
) -> dict[str, Any]:
    """Return what a gate keeps of the head's gain, and spares of its excess refusals."""
    gated = base.where(flagged, always)
    gain, of_always = (
        _change(arm, base, "refused", unsafe, group)["change"] for arm in (gated, always)
    )
    excess, excess_always = (
        _change(arm, base, "refused", safe, group)["change"] for arm in (gated, always)
    )
    before, after = (float((arm.outcome[unsafe] == "complied").mean()) for arm in (base, gated))
    recall = float(flagged[unsafe].mean())
    return {
        "gain": gain,
        "share_of_gain": gain / of_always if of_always else None,
        "share_of_gain_at_recall": gain / (of_always * recall) if of_always * recall else None,
        "excess": excess,
        "share_of_excess": excess / excess_always if excess_always else None,
        "complied_down": 1 - after / before if before else None,
    }


def _change(
    arm: Outcomes, base: Outcomes, word: str, chosen: Array, group: Array
) -> dict[str, Any]:
    """Return the difference of the share of an outcome, with its paired interval."""
    change, interval = paired_change(
        arm.outcome[chosen] == word, base.outcome[chosen] == word, group[chosen]
    )
    return {"change": change, "interval": interval}


def _auroc(scores: Array, wanted: Array, group: Array) -> dict[str, Any]:
    """Return how well scores tell unsafe prompts that are complied with from all others."""
    bootstrap = GroupBootstrap([group], num_draws=1000)
    draws = bootstrap.draws({"auroc": lambda rows: auroc(scores[rows], wanted[rows])}, group)
    return {"auroc": auroc(scores, wanted), "interval": GroupBootstrap.interval(draws["auroc"])}


def _beside(path: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was measured, after what an earlier run found of other models."""
    names = {of["model"]["name"] for of in found}
    earlier = json.loads(path.read_text(encoding="utf-8"))["models"] if path.is_file() else []
    return [*(of for of in earlier if of["model"]["name"] not in names), *found]


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="repeats; the embedded one by default")
    parser.add_argument("--detector", action="append", help="stage one of each model")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts, for a trial")
    parser.add_argument(
        "--learnt", type=int, default=360, help="prompts that stage two learns from"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the report")
    options = parser.parse_args()
    models, detectors = options.model or ["embedded"], options.detector or ["pretrained"]
    results = {
        "machine": describe_machine(),
        "fpr": FPR,
        "reach": REACH,
        "max_tokens": MAX_TOKENS,
    }
    found = [
        measure(model, detector, share=options.share, num_learnt=options.learnt)
        for model, detector in zip(models, detectors, strict=True)
    ]
    results["models"] = _beside(options.out / "safeswitch.json", found)
    keep("safeswitch", results, report(results), folder=options.out, prints_json=options.json)


if __name__ == "__main__":
    main()
