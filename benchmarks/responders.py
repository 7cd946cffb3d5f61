"""Compares responders behind the detector on held-out prompts, and writes the whole trade-off.

Responders that are trained are trained on the prompts that ship, unless an artifact is there; name
them with `--responders` to use others. The gate is the packaged detector for the embedded model;
for another one it is fitted (`benchmarks.gate`), unless `--detector` names one.

    DEMUR_DATA=FOLDER python -m benchmarks.responders [--model M] [--detector GATE]
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import demur
from benchmarks.arms import held_out_cases, tell
from benchmarks.artifacts import (
    LEARNING_RATE,
    artifact_folder,
    trained_by_default,
    trained_folder,
)
from benchmarks.gate import gate_of
from demur.core.examples import Example
from demur.datasets import replies
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.studies._cases import Cases
from demur.studies._writing import write
from demur.studies.responders import Responders
from demur.trainers.sft import SftTrainer
from demur.workflows.machine import describe_machine

RESULTS = Path(__file__).parent / "results" / "responders"
UNTRAINED = ("fixed_reply", "safety_prompt")
TRAINED = ("refusal_head", "steering", "soft_prompt", "candidate_reranking")
ADAPTER_STEPS = 80
ROOM = 48
"""Rows that decode together."""


def responder_lines(model: str) -> list[str]:
    """Return the responders that are compared; what has to be trained is.

    The adapter is `sft` on the replies that ship: refusals, and answers to look-alikes.
    """
    sft = SftTrainer(learning_rate=LEARNING_RATE, steps=ADAPTER_STEPS)
    adapter = trained_folder(sft, replies.load("train"), model, artifact_folder("sft", model))
    trained = [f"{method}:{trained_by_default(method, model)}" for method in TRAINED]
    return [*UNTRAINED, *trained, f"adapter:{adapter}"]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a command line that says which replies are meant."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="embedded", help="the embedded one, a folder or a file")
    parser.add_argument("--detector", help="the gate; default: packaged, or fitted for the model")
    parser.add_argument("--responders", nargs="*", help="default: all, trained where they are not")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a reply")
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts")
    return parser


def by_source(cases: Cases) -> Mapping[str, Sequence[Example]]:
    """Return the prompts by the sets that they come from."""
    found: dict[str, list[Example]] = {}
    for example in cases.examples:
        found.setdefault(str(example.source), []).append(example)
    return found


def main() -> None:
    """Run the benchmark and write its results."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--fpr", type=float, default=0.0, help="of the gate's threshold; default: its own"
    )
    parser.add_argument("--alone", type=int, default=12, help="prompts answered one at a time")
    parser.add_argument("--no-perplexity", action="store_true", help="do not read replies again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for results")
    options = parser.parse_args()
    started = time.perf_counter()
    cases = held_out_cases(DemurData(), share=options.share)
    gate = gate_of(options.model, options.detector)
    engine = TransformersEngine.load(options.model, max_batch=ROOM)
    name = engine.model_id.name
    lines = options.responders or responder_lines(options.model)
    study = Responders(
        responders=tuple(lines),
        detector=gate,
        fpr=options.fpr,
        num_prompts=len(cases.examples),
        max_tokens=options.max_tokens,
        num_alone=options.alone,
        has_perplexity=not options.no_perplexity,
    )
    result = study.compare(engine, by_source(cases), report=tell)
    about = {
        "demur": demur.__version__,
        "command": "python -m benchmarks.responders",
        "model": engine.model_id.as_dict(),
        "parameters": study.described(),
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - started),
    }
    write(result, options.out / name, about=about)
    print("\n".join(result.findings))


if __name__ == "__main__":
    main()
