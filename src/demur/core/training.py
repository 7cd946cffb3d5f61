"""What a trainer is: it makes the artifact that a responder reads, from labelled prompts.

A trainer is a dataclass whose fields are hyper-parameters. It loads its own copy of the model, and
never changes a caller's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.tensors import TENSORS
from demur.core.types import Dtype, ModelId


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    stage: str
    """What is being done, in a word or two."""
    done: int
    total: int
    loss: float | None = None
    """Of the last step, where one is taken."""
    num_tokens: int = 0
    """Read so far in this stage."""


Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Run:
    """What every training is told beside its examples."""

    model: str = "embedded"
    """As `modeling.load.load` takes it."""
    dtype: Dtype = "auto"
    device: str = "auto"
    seed: int = 0
    report: Report = silent
    checkpoint: Path | None = None
    """A file in which a long training keeps how far it is, and from which it goes on; None keeps
    nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a training leaves, before it is written."""

    model_id: ModelId
    tensors: Mapping[str, Array]
    """The trained arrays, by name."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the responder has to know beside them, as plain values."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured while training, by name."""
    curve: Sequence[float] = ()
    """The loss after each step, where there are steps."""
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """What else was watched in each step, by name; None where a step had nothing of it."""
    tensors_file: str = TENSORS
    """What the arrays' file is called: another name where another library reads it."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What else is written, by name, as other libraries want it."""


class Trainer(ABC):
    """A method that makes a responder's artifact."""

    makes: ClassVar[str]
    """The responder that reads what it makes."""
    learns_from: ClassVar[tuple[str, ...]] = ("written",)
    """Packaged sets whose training prompts it learns from where a user gives no examples."""

    @property
    def packaged(self) -> tuple[str, ...]:
        """Packaged sets whose training prompts it needs beside the examples that a user gives."""
        return ()

    @abstractmethod
    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Train on examples; the same seed gives the same arrays on the same machine.

        Args:
            examples: Labelled prompts; some methods want replies, too.
            run: The model, the seed, and who is told of progress.

        Raises:
            ConfigError: There is no such model.
            DataError: The examples lack what the method learns from.
        """

    def hyper_parameters(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        found: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # all are dataclasses
        return found
