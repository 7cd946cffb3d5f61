"""The worker: vLLM's own, with tapped blocks and a judge of the prompts that it reads.

`execute_model` runs a step's pass, and `sample_tokens` draws. What taps have read of prompts is
judged when the step's tokens are handed on, so that no token is seen before its prompt's verdict,
and nothing waits for one: where vLLM schedules asynchronously the next step runs meanwhile. A token
drawn for a prompt that is flagged comes to nothing. A worker whose verdicts go nowhere else judges
between pass and draw instead, and forces what a flagged prompt's reply is to be (`Forcing`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from demur.core.errors import CapabilityError
from demur.engines._stored_columns import stored
from demur.engines.vllm.reader import CONFIG_KEY, Reader, Taken, is_older
from demur.engines.vllm.steering import ROOM, Steering
from demur.engines.vllm.taps import Taps
from demur.modeling.gguf import cache_folder

READOUTS = "readouts"
"""The folder of the cache that holds what is to be computed."""


class ForcedReply(LogitsProcessor):
    """Leaves one token to draw from in the rows that the worker names, in the step at hand."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, int] = {}
        """Row of the logits to token."""

    def is_argmax_invariant(self) -> bool:
        """Say that greedy replies change, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Ignore slots: the worker names rows anew in each step."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Force the named rows of [row, vocabulary]."""
        for row, token_id in self.rows.items():
            logits[row] = -torch.inf
            logits[row, token_id] = 0.0
        return logits


class Judged(AsyncModelRunnerOutput):
    """A step's tokens, handed on once its prompts are judged.

    Args:
        output: vLLM's own.
        settle: Judges them.
    """

    def __init__(self, output: AsyncModelRunnerOutput, settle: Callable[[], None]) -> None:
        self._output = output
        self._settle = settle

    def get_output(self) -> Any:
        """Wait for the tokens."""
        self._settle()
        return self._output.get_output()


class Guarding:
    """Adds taps and a reader to a worker of vLLM."""

    vllm_config: VllmConfig
    device: torch.device
    model_runner: Any
    reader: Reader

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and tap its blocks before anything is compiled.

        Raises:
            CapabilityError: vLLM was started with something that demur does not guard.
        """
        config = self.vllm_config
        _require(
            {
                "speculative decoding": config.speculative_config is not None,
                "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
            }
        )
        super().load_model(**kwargs)  # type: ignore[misc]
        columns = stored(config.additional_config[CONFIG_KEY], cache_folder() / READOUTS)
        model = self.model_runner.get_model()
        most = config.scheduler_config.max_num_batched_tokens
        taps = Taps(model, columns, max_tokens=most, device=self.device)
        room = config.additional_config.get(ROOM)
        steering = Steering(model, room, max_tokens=most) if room else None
        self.reader = Reader(self.model_runner, taps, steering)
        self._taken: Taken | None = None
        if taps.can_choose:
            model.register_forward_pre_hook(self.reader.choose)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step's pass, and keep what it has read of prompts."""
        self.reader.before(scheduler_output)
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        self._taken = self.reader.take()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Draw a step's tokens; who waits for them waits for the verdicts, too."""
        taken, self._taken = self._taken, None
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        if taken is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return Judged(output, partial(self.reader.settle, taken))
        self.reader.settle(taken)
        return output


class Forcing(Guarding):
    """Judges before the draw, and forces the replies to flagged prompts.

    vLLM is to be given `ForcedReply`, the older model runner, and no asynchronous scheduling.
    """

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and learn what ends a reply.

        Raises:
            CapabilityError: As of `Guarding`, and where the model runner is the newer one.
        """
        _require(
            {
                "the newer model runner (set VLLM_USE_V2_MODEL_RUNNER=0)": not is_older(
                    self.model_runner
                )
            }
        )
        super().load_model(**kwargs)
        self._end_token_id = end_token_id_of(self.vllm_config.model_config)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step's pass, judge the prompts that it read, and name the rows to force."""
        output = super().execute_model(scheduler_output)
        taken, self._taken = self._taken, None
        if taken is not None:
            self.reader.settle(taken)
        forced = self.reader.forced(end_token_id=self._end_token_id)
        for processor in self.model_runner.input_batch.logitsprocs.non_argmax_invariant:
            if isinstance(processor, ForcedReply):
                processor.rows = forced
                if forced:
                    self._hide(processor)
        return output

    @torch.inference_mode()
    def _hide(self, processor: ForcedReply) -> None:
        """Take out of the logits what log-probabilities would tell of the untouched reply.

        The processor forces once more, after those that could forbid an end.
        """
        step = self.model_runner.execute_model_state
        if step is not None and step.logits is not None:
            processor.apply(step.logits)


def end_token_id_of(model: ModelConfig) -> int:
    """Return the token that ends a forced reply."""
    end: Any = model.try_get_generation_config().get("eos_token_id")
    if end is None:
        end = model.hf_text_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


def _require(refused: dict[str, bool]) -> None:
    found = [name for name, is_on in refused.items() if is_on]
    if found:
        raise CapabilityError(f"demur does not guard {' or '.join(found)}: switch it off")
