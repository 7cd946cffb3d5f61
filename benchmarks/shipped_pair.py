"""What the pair that ships makes of false alarms: over-refusal, measured on replies.

Prompts that the gate passes get the model's own reply, so that only flagged ones have to be
answered anew: by the model itself, and by the responder. The change is over all prompts of a set.

    DEMUR_DATA=FOLDER python -m benchmarks.shipped_pair [--responder LINE] [--share S]
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import demur
from benchmarks.arms import Arms, drawn, short_prompts
from benchmarks.shipped_pair_report import report
from demur.core.examples import Example
from demur.core.readings import Array
from demur.datasets.demur_data import DemurData
from demur.studies._arms import paired_change
from demur.studies._cases import Cases
from demur.studies._study import Row
from demur.workflows.machine import describe_machine

RESULTS = Path(__file__).parent / "results" / "shipped_pair"
SAFE = {"xstest": "test_ood", "oktest": "test_ood", "coconot_eval": "test_ood"} | {
    "alpaca_eval": "utility"
}
UNSAFE = ("strongreject", "harmbench", "jailbreakbench", "malicious_instruct", "jbb_artifacts")
OF_EACH = 60
"""Unsafe prompts of a set; of safe ones all are judged, for few are flagged."""


def prompts(data: DemurData, *, share: float) -> dict[str, list[Example]]:
    """Return the prompts by set; those of one set are of one label."""
    safe = {name: short_prompts(data, name, split, "safe") for name, split in SAFE.items()}
    unsafe = {name: short_prompts(data, name, "test_ood", "unsafe") for name in UNSAFE}
    return {
        **{f"{name}, safe": drawn(of, len(of), share=share) for name, of in safe.items()},
        **{name: drawn(of, OF_EACH, share=share) for name, of in unsafe.items()},
    }


def measured(arms: Arms, sets: Array, responder: str) -> list[Row]:
    """Return what the responder changes in each set.

    Args:
        arms: The prompts, set by set, and the model with its gate.
        sets: The set of each prompt, [prompt].
        responder: As `--responder` takes it.
    """
    flagged = arms.margins() >= 0
    rows = np.flatnonzero(flagged)
    chats = [arms.chats[int(row)] for row in rows]
    base = arms.labelling.label(chats, arms.base_replies(rows))
    answered = arms.labelling.label(chats, arms.replies(responder, rows))
    found: list[Row] = []
    for name in dict.fromkeys(sets.tolist()):
        here, among = sets == name, sets[rows] == name
        word = "complied" if arms.cases.role[here][0] == "unsafe" else "refused"
        before, after = (of.outcome == word for of in (base, answered))
        change, (low, high) = paired_change(
            _over_all(after, rows, len(sets))[here],
            _over_all(before, rows, len(sets))[here],
            arms.cases.group[here],
        )
        found.append(
            {
                "set": name,
                "counted": word,
                "prompts": int(here.sum()),
                "flagged": float(flagged[here].mean()),
                "by_base": _share(before[among]),
                "by_responder": _share(after[among]),
                "collapsed": _share(answered.collapsed[among]),
                "change": change,
                "change_low": low,
                "change_high": high,
            }
        )
    return found


def _over_all(hits: Array, rows: Array, num_prompts: int) -> Array:
    """Return hits among all prompts; those that are not flagged change nothing."""
    found = np.zeros(num_prompts, dtype=bool)
    found[rows] = hits
    return found


def _share(hits: Array) -> float | None:
    return float(hits.mean()) if len(hits) else None


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument("--detector", default="pretrained", help="the gate")
    parser.add_argument("--responder", nargs="+", default=["adapter:pretrained"], help="lines")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a reply")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results without their ending")
    options = parser.parse_args()
    started = time.perf_counter()
    of_set = prompts(DemurData(), share=options.share)
    examples = tuple(example for of in of_set.values() for example in of)
    sets = np.repeat(list(of_set), [len(of) for of in of_set.values()])
    role = np.array(["unsafe" if e.label == "unsafe" else "look_alike" for e in examples])
    arms = Arms(options.model, Cases(examples, role), options.detector, options.max_tokens)
    result: Mapping[str, Any] = {
        "demur": demur.__version__,
        "model": arms.engine.model_id.as_dict(),
        "machine": describe_machine(),
        "max_tokens": options.max_tokens,
        "share": options.share,
        "responders": {line: measured(arms, sets, line) for line in options.responder},
        "seconds": round(time.perf_counter() - started),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    options.out.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
