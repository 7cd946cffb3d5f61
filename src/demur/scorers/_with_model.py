"""What scorers share that ask a model."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from demur.core.outcomes import Scorer
from demur.modeling.load import LoadedModel, load


@dataclass
class ModelScorer(Scorer):
    """A scorer that asks a model, which is loaded when it is first needed."""

    model: str = "embedded"
    """`embedded`, a folder, a `.gguf` file, or a name on the model hub."""
    loaded: LoadedModel | None = field(default=None, kw_only=True, repr=False, compare=False)
    """The model itself, where a caller has it already; `model` then says nothing."""

    asks: ClassVar[Literal["nothing", "model", "endpoint"]] = "model"

    def ready(self) -> LoadedModel:
        """Return the model, loaded once.

        Raises:
            ConfigError: There is no such model.
            MissingPackageError: The embedded model's package is not installed.
        """
        if self.loaded is None:
            self.loaded = load(self.model)
        return self.loaded
