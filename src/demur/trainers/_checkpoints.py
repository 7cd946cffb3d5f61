"""Where a training is: kept in one file, so that a run which was killed goes on where it stopped.

The file is written whole or not at all. It says which training it is of: another model, other
examples or other hyper-parameters begin anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from demur.core.examples import Example
from demur.core.folders import write_synced

STATE = "state"
"""The key under which everything but tensors stands."""


@dataclass
class TrainingState:
    """What a training needs to go on."""

    step: int = 0
    """Steps that were taken."""
    curve: list[float] = field(default_factory=list)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    num_tokens: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Weights, and the optimiser's moments."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with a training's state.

    Args:
        path: None keeps nothing.
        training: Says which training it is of.
    """

    path: Path | None
    training: str

    def read(self) -> TrainingState | None:
        """Return the state; None if there is none, or one of another training."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                fields = json.loads(file.metadata()[STATE])
                if fields.pop("training") != self.training:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None  # of another version, say: the training begins anew
        return TrainingState(**fields, tensors=tensors)

    def write(self, state: TrainingState) -> None:
        """Replace the state by a later one."""
        if self.path is None:
            return
        fields = {"training": self.training, **asdict(state), "tensors": None}
        del fields["tensors"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        write_synced(partial, save(state.tensors, {STATE: json.dumps(fields)}))
        partial.replace(self.path)


def training_id(examples: Sequence[Example], depends_on: Mapping[str, Any]) -> str:
    """Return a hash of all that a training depends on."""
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode())
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()
