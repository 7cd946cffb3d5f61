"""How a flagged request goes once more: under a safety prompt, an adapter or vectors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import AddVectors, Intervention, PrependText, UseAdapter
from demur.core.preparing import Loadable
from demur.core.types import Chat, Prompt
from demur.engines.vllm.adapters import LoraRequests, load_adapters
from demur.engines.vllm.reader import reader_of
from demur.engines.vllm.rows import Row
from demur.engines.vllm.steering import Steerings
from demur.modeling.blocks import Parts


@dataclass(frozen=True)
class Wanted:
    """What an engine is to load that flagged requests may be answered under."""

    adapters: Sequence[UseAdapter]
    steerings: Steerings

    @classmethod
    def of(cls, interventions: Iterable[Loadable], parts: Parts) -> Self:
        """Return it, kind by kind.

        Args:
            interventions: Of responders.
            parts: Of the model.
        """
        every = list(interventions)
        vectors = [of for of in every if isinstance(of, AddVectors)]
        adapters = [of for of in every if isinstance(of, UseAdapter)]
        return cls(adapters, Steerings(vectors, len(parts.blocks), parts.d_model))

    def put_into(self, engine: LLMEngine) -> "InPlace":
        """Load it into an engine in this process that was started with room for it.

        Raises:
            CapabilityError: vLLM cannot run an adapter.
            ConfigError: An artifact is gone.
            DataError: It has changed, or does not fit the model.
        """
        steering = reader_of(engine).steering
        if steering is not None:
            self.steerings.fill(steering)
        return InPlace(self.steerings, load_adapters(engine, self.adapters))


@dataclass(frozen=True)
class InPlace:
    """What an engine has loaded that flagged requests may be answered under."""

    steerings: Steerings
    adapters: LoraRequests

    @property
    def capabilities(self) -> frozenset[type]:
        """The interventions that it makes possible."""
        found: Mapping[type, object] = {UseAdapter: self.adapters, AddVectors: self.steerings.slots}
        return frozenset(kind for kind, of in found.items() if of)

    def change(
        self, row: Row, intervention: Intervention, *, render: Callable[[Chat], Prompt]
    ) -> None:
        """Let a request go on under an intervention once it is handed to vLLM again.

        Args:
            row: The request; it was judged.
            intervention: One that draws tokens.
            render: Of the engine.

        Raises:
            CapabilityError: The adapter or the vectors were not loaded.
            DataError: With its safety prompt the chat is too long, or the template refuses it.
        """
        row.intervention = None
        if isinstance(intervention, UseAdapter):
            row.adapter = self._adapter(intervention)
        elif isinstance(intervention, AddVectors):
            row.steered = self.steerings.said(intervention, row.prompt)
        else:
            assert isinstance(intervention, PrependText), "the guard checked the capabilities"
            try:
                row.prompt = render(row.prompt.chat.with_safety_prompt(intervention.text))
            except DataError as error:
                raise DataError(f"with its safety prompt {error}") from error

    def _adapter(self, intervention: UseAdapter) -> LoRARequest | None:
        if intervention not in self.adapters:
            raise CapabilityError(
                f"the engine has not loaded {intervention.adapter.folder} at scale "
                f"{intervention.scale:g}: name it when the engine is loaded"
            )
        return self.adapters[intervention]
