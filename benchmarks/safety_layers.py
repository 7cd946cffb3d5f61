"""Safety layers on a model that refuses: does leaving them alone keep refusals through fine-tuning?

    DEMUR_DATA=FOLDER python -m benchmarks.safety_layers --model MODEL
        [--share 1.5] [--steps 64] [--learning-rate 2e-4] [--json]

First, where the model tells unsafe from ordinary prompts, and which blocks make it refuse (the
study `safety_layers`). Then the model is fine-tuned on harmless rows whose answers open with
"Sure,": all blocks, all but the safety layers, and all but random blocks of the same width, each
for the same steps, fewer than see a row twice; how well each knows held-out rows of the task stands
beside it. What each complies with is counted on prompts that nothing was fitted on. What was found,
trained and drawn is kept in the user's cache, arm by arm, so that a run which was stopped goes on.

Arms are not stopped at one held-out loss: most of what there is to learn is how answers open, so
that it falls within a dozen steps to where it then stays, and an arm that is stopped there would
seem safe for having been trained less.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arms import Arms, always_on_rows, held_out_cases, tell
from benchmarks.artifacts import trained_folder, training_metrics
from benchmarks.one_model import run
from benchmarks.safety_layers_report import compared, report
from benchmarks.safety_layers_rows import task_prompts, task_rows
from demur.datasets import written
from demur.datasets.demur_data import DemurData
from demur.modeling.gguf import cache_folder
from demur.studies._study import IN_DISTRIBUTION, StudyInputs
from demur.studies._writing import write
from demur.studies.safety_layers import SafetyLayers
from demur.trainers.safety_layers import SafetyLayersTrainer
from demur.workflows.capture import Capturer
from demur.workflows.fit import describe_set
from demur.workflows.study_reader import StudyReader

MAX_TOKENS = 48
LEARNING_RATE = 2e-4
"""At 1e-3, the default of small models, held-out rows of this task cost more at the end."""
ALL, LEFT_ALONE, RANDOM = "all blocks", "all but the safety layers", "all but blocks"
NUM_RANDOM = 2


def measure(
    model: str, detector: str, *, share: float, steps: int, learning_rate: float
) -> dict[str, Any]:
    """Measure one model.

    Args:
        model: As `--model` takes it.
        detector: A gate, which `benchmarks.arms` asks for; nothing is gated here.
        share: Of the prompts of `benchmarks.arms`, over 0; 1.5 makes 225 of a role.
        steps: Of each fine-tuning.
        learning_rate: The same.
    """
    started = time.perf_counter()
    cases = held_out_cases(DemurData(), share=share)
    arms = Arms(model, cases, detector=detector, max_tokens=MAX_TOKENS)
    root = cache_folder() / "benchmarks" / "safety_layers" / arms.engine.model_id.name
    found = _studied(arms, SafetyLayers(num_lookalikes=100, num_random=NUM_RANDOM), root / "study")
    named = {str(row["is"]): str(row["blocks"]) for row in found["rows"]}
    randoms = [str(row["blocks"]) for row in found["rows"] if row["is"] == "random"]
    prompts = task_prompts(share=min(1.0, share))
    chats = [example.chat for example in prompts]
    replies = arms.answers.base(chats)
    rows = task_rows(prompts, replies, arms.labelling.label(chats, replies).outcome.tolist())
    left_alone = {
        ALL: "none",
        LEFT_ALONE: named["safety layers"],
        **{f"{RANDOM} {of}": of for of in randoms},
    }
    # An answer that was cut at the limit is cut once more, so that no end is learnt.
    shared: Mapping[str, Any] = {
        "steps": steps,
        "batch_size": 4,
        "learning_rate": learning_rate,
        "max_reply_tokens": MAX_TOKENS - 1,
    }
    folders = {
        name: trained_folder(
            SafetyLayersTrainer(protects=blocks, **shared), rows, model, root / f"without-{blocks}"
        )
        for name, blocks in left_alone.items()
    }
    base = arms.base()
    outcomes = {name: arms.under(f"adapter:{folder}") for name, folder in folders.items()}
    return {
        "model": arms.engine.model_id.as_dict(),
        "max_tokens": MAX_TOKENS,
        "share": share,
        "steps": steps,
        "learning_rate": learning_rate,
        "study": {"findings": found["findings"], "rows": found["rows"]},
        "safety_layers": named["safety layers"],
        "trained_on": describe_set(rows),
        "training": {name: training_metrics(of) for name, of in folders.items()},
        "arms": always_on_rows(base, outcomes, cases),
        "compared": compared(
            base,
            outcomes[ALL],
            outcomes[LEFT_ALONE],
            {name: of for name, of in outcomes.items() if name.startswith(RANDOM)},
            cases,
        ),
        "seconds": time.perf_counter() - started,
    }


def _studied(arms: Arms, study: SafetyLayers, out: Path) -> dict[str, Any]:
    """Return what the study finds; it is run unless its results lie there."""
    path = out / "results.json"
    if not path.is_file():
        english = {
            split: [example for example in written.load(split) if example.language == "en"]
            for split in ("train", "val")
        }
        tests = {
            IN_DISTRIBUTION: english["val"],
            "held out": [of for of in arms.cases.examples if of.label == "safe"],
        }
        inputs = StudyInputs(
            read=StudyReader(Capturer(arms.engine.loaded), []).read,
            num_blocks=len(arms.engine.loaded.parts.blocks),
            train=english["train"],
            val=[],
            tests=tests,
            report=tell,
            engine=arms.engine,
        )
        write(study.run(inputs), out)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Measure, write the results, and print them."""
    run(
        "safety_layers",
        __doc__,
        measure,
        report,
        {
            "share": (1.5, "of the prompts; 1.5 for 225 each"),
            "steps": (64, "of each fine-tuning"),
            "learning_rate": (LEARNING_RATE, "of each fine-tuning"),
        },
    )


if __name__ == "__main__":
    main()
