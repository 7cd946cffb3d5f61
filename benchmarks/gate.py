"""Fits a detector for a model that has no packaged one, so that responders can be gated on it.

It is fitted as the packaged one is, on fewer prompts: demur's own English ones and a few of each
public set, for measuring only.

    DEMUR_DATA=FOLDER python -m benchmarks.gate --model M [--of-each 40] [--max-characters 1200]

Other numbers than these make another gate beside it, to be named as `--detector` of a benchmark.
"""

import argparse
from dataclasses import dataclass
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

OF_EACH = 40
"""Most training prompts of one public set; half as many to calibrate on."""
MAX_CHARACTERS = 1200
"""Of a public prompt. In-the-wild jailbreaks are longer, two of three."""
FPR = 0.02
"""What the validation prompts support."""


@dataclass(frozen=True)
class Size:
    """How much a gate learns from."""

    of_each: int = OF_EACH
    max_characters: int = MAX_CHARACTERS

    @property
    def suffix(self) -> str:
        """What is added to the name of a gate of this size; nothing to that of the usual one."""
        return "" if self == Size() else f"-{self.of_each}-{self.max_characters}"


def gate_rows(data: DemurData, size: Size) -> Selection:
    """Return what a gate learns from, and what it is calibrated on."""
    parts: dict[str, list[Example]] = {}
    for split, number in (("train", size.of_each), ("val", size.of_each // 2)):
        own = [*starter.load(split), *written.load(split)]  # type: ignore[arg-type]
        rows = [example for example in own if example.language in (None, "en")]
        for name in data.sets:
            short = [
                example
                for example in data.load(name, (split,), small=True)
                if len(example.chat.last_user_text) <= size.max_characters
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


def fitted_gate(model: str, size: Size = Size()) -> Path:
    """Return the folder of a model's gate; it is fitted if it is not there.

    Args:
        model: The embedded one, a folder, a file, or a name.
        size: Of what it learns from.
    """
    engine = TransformersEngine.load(model)
    folder = cache_folder() / "gates" / f"{engine.model_id.name}{size.suffix}"
    if (folder / MANIFEST).is_file():
        return folder
    selection = gate_rows(DemurData(), size)
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
    parser.add_argument("--of-each", type=int, default=OF_EACH, help="prompts of a public set")
    parser.add_argument("--max-characters", type=int, default=MAX_CHARACTERS, help="of a prompt")
    options = parser.parse_args()
    print(fitted_gate(options.model, Size(options.of_each, options.max_characters)))


if __name__ == "__main__":
    main()
