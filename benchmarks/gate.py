"""Fits a detector for a model that has no packaged one, so that responders can be gated on it.

It is fitted as the packaged one is, on fewer prompts: demur's own English ones and a few of each
public set, for measuring only.

    DEMUR_DATA=FOLDER python -m benchmarks.gate --model M
"""

import argparse
from pathlib import Path

from benchmarks.build_pretrained import show_progress
from benchmarks.rows import Selection
from demur.core.examples import Example
from demur.core.folders import MANIFEST
from demur.datasets import starter, written
from demur.datasets.demur_data import DemurData
from demur.detectors.linear_ensemble import LinearEnsemble
from demur.engines.transformers import TransformersEngine
from demur.modeling.gguf import cache_folder
from demur.workflows import fit as fitting
from demur.workflows.capture import Capturer
from demur.workflows.study_sets import limited

TRAIN_ROWS, VAL_ROWS = 40, 20
"""Most prompts of one public set and label."""
MAX_CHARACTERS = 1200
FPR = 0.02
"""What the validation prompts support."""


def gate_rows(data: DemurData) -> Selection:
    """Return what a gate learns from, and what it is calibrated on."""
    parts: dict[str, list[Example]] = {}
    for split, number in (("train", TRAIN_ROWS), ("val", VAL_ROWS)):
        own = [*starter.load(split), *written.load(split)]  # type: ignore[arg-type]
        rows = [example for example in own if example.language in (None, "en")]
        for name in data.sets:
            short = [
                example
                for example in data.load(name, (split,), small=True)
                if len(example.chat.last_user_text) <= MAX_CHARACTERS
            ]
            rows += limited(short, number, seed=0)
        parts[split] = rows
    benign = "the benign validation prompts of demur's own English ones and of public sets"
    return Selection("gate", parts["train"], parts["val"], benign)


def gate_of(model: str, named: str | None = None) -> str:
    """Return the detector that stands before responders: the named one, packaged, or fitted here.

    Args:
        model: The embedded one, a folder, a file, or a name.
        named: As `--detector` takes it.
    """
    if named is not None:
        return named
    return "pretrained" if model == "embedded" else str(fitted_gate(model))


def fitted_gate(model: str) -> Path:
    """Return the folder of a model's gate; it is fitted if it is not there.

    Args:
        model: The embedded one, a folder, a file, or a name.
    """
    engine = TransformersEngine.load(model)
    folder = cache_folder() / "gates" / engine.model_id.name
    if (folder / MANIFEST).is_file():
        return folder
    selection = gate_rows(DemurData())
    capturer = Capturer(engine.loaded)
    fitted = fitting.fit(
        LinearEnsemble(LinearEnsemble.default_reads(len(engine.loaded.parts.blocks))),
        selection.train,
        selection.val,
        capture=lambda examples, reads: capturer.parts(
            [example.chat for example in examples], reads, report=show_progress
        ),
        fpr=FPR,
        calibrated_on=selection.calibrated_on,
        seed=0,
    )
    fitting.write_artifact(
        fitted,
        "linear_ensemble",
        engine=engine,
        train=selection.train,
        val=selection.val,
        out=folder,
    )
    return folder


def main() -> None:
    """Fit the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, a file or a name")
    print(fitted_gate(parser.parse_args().model))


if __name__ == "__main__":
    main()
