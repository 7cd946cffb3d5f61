"""vLLM's own extraction of hidden states, to compare with: a file a request, scored at its end.

What is computed, kept and written is vLLM's (`extract_hidden_states` with its example connector).
That asks for pinned memory and for events, which a machine without a GPU has not: what takes their
place there is below.
"""

import fcntl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    load_hidden_states,
)
from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from benchmarks.vllm_arms import DETECTORS, Plain, plain_engine
from benchmarks.vllm_extraction_scores import score
from benchmarks.vllm_windows import Answer, Asked
from demur.core.readout import LinearReadout
from demur.core.types import Chat, Prompt
from demur.engines._columns import Columns
from demur.engines.vllm.rows import Known
from demur.guard.loading import readouts_of
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import load


class Connector(ExampleHiddenStatesConnector):  # type: ignore[misc]
    """vLLM's connector, with ordinary memory and no events where there is no GPU."""

    why_not: ClassVar[str | None] = None
    """What vLLM's own said when it failed."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        if Connector.why_not is None:
            try:
                super()._submit_async_write(pending)
                return
            except RuntimeError as error:
                Connector.why_not = f"{type(error).__name__}: {error}"
        plain = torch.empty_like

        def ordinary(like: torch.Tensor, *, device: str, pin_memory: bool) -> torch.Tensor:
            return plain(like, device=device)

        with patch.object(torch, "empty_like", ordinary):
            super()._submit_async_write(pending)
        # Without a GPU vLLM's events can only be waited for, and the copy is made at once.
        self._req_copy_events[pending.req_id] = _Over()


class _Over:
    """An event that has happened."""

    def query(self) -> bool:
        """Say so."""
        return True


def engine_of(layers: Sequence[int], folder: Path, sizes: Mapping[str, Any]) -> LLMEngine:
    """Return vLLM's engine that writes the states of each prompt into a file.

    Args:
        layers: 0-based blocks whose output is kept.
        folder: Of the files.
        sizes: Fields of vLLM's `EngineArgs`.
    """
    inputs = [layer + 1 for layer in layers]  # vLLM names the block that a state goes into
    return plain_engine(
        speculative_config={
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": inputs}},
        },
        kv_transfer_config={
            "kv_connector": Connector.__name__,
            "kv_connector_module_path": __name__,
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(folder)},
        },
        **sizes,
    )


class Extracting(Plain):
    """vLLM by itself, whose states are read from a file and scored when a reply is complete.

    Args:
        vllm: An engine that extracts.
        known: Renders prompts.
        readout: Of the detector.
        layers: That the engine extracts, in order.
        clock: One of CLOCKS.
    """

    def __init__(
        self,
        vllm: LLMEngine,
        known: Known,
        readout: LinearReadout,
        layers: Sequence[int],
        *,
        clock: str,
    ) -> None:
        super().__init__(vllm, known, clock=clock)
        self._score = partial(score, readout, layers)
        self._prompts: dict[str, Prompt] = {}
        self._unread: list[tuple[str, Prompt, Answer]] = []

    @staticmethod
    def how_it_runs() -> str:
        """Say what had to be changed so that vLLM's extraction runs here."""
        if Connector.why_not is None:
            return "it ran"
        return (
            "it ran with ordinary memory and without events, since as it is it fails here "
            f"({Connector.why_not})"
        )

    def _submit(self, one: Asked) -> Answer:
        answer = super()._submit(one)
        self._prompts[one.id] = self._known.renderer.render(one.chat)
        return answer

    def _finish(self, output: RequestOutput, answer: Answer) -> None:
        """Take note of the file; vLLM writes it in its next step."""
        path = output.kv_transfer_params["hidden_states_path"]
        self._unread.append((path, self._prompts.pop(output.request_id), answer))
        self._is_done()

    def _is_done(self) -> bool:
        """Score what was written meanwhile."""
        waiting, self._unread = self._unread, []
        for path, prompt, answer in waiting:
            if not _is_written(path):
                self._unread.append((path, prompt, answer))
                continue
            states = load_hidden_states(path)["hidden_states"].double().numpy()
            answer.score, answer.is_scored = self._score(prompt, states), True
            for name in (path, f"{path}.lock"):
                Path(name).unlink()
        return not self._unread


def _is_written(path: str) -> bool:
    """Say whether vLLM has let go of a file; waiting would stop it, in one process."""
    with Path(f"{path}.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return Path(path).is_file()


def extracting(
    sizes: dict[str, Any], *, model: str, dtype: Any, folder: str, clock: str
) -> Extracting:
    """Return the arm, for the packaged detector.

    Args:
        sizes: Fields of vLLM's `EngineArgs`.
        model: As `--model` takes it.
        dtype: Of the weights.
        folder: Of the files.
        clock: One of CLOCKS.
    """
    loaded = load(model, dtype=dtype)
    known = Known(ChatRenderer.of(loaded), loaded.tokenizer, loaded.model_id, loaded.end_token_ids)
    readout, *_ = readouts_of(DETECTORS, loaded.model_id)
    layers = Columns.of([readout], num_blocks=len(loaded.parts.blocks)).layers
    engine = engine_of(layers, Path(folder), sizes)
    arm = Extracting(engine, known, readout, layers, clock=clock)
    arm.ask([Asked("probe", Chat.from_text("Hello"), False, 2)], streams=1)
    return arm
