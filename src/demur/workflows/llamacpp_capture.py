"""Reads last tokens with llama.cpp, whose embeddings are the states after the final norm.

Nothing else comes out of it, so that other reads are refused. Prompts are rendered by transformers'
tokenizer and read as token ids, one at a time: no answer depends on its neighbours.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xllamacpp

from demur.core.errors import CapabilityError, DataError
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Prompt
from demur.modeling.gguf_float import float_format
from demur.modeling.load import LoadedModel
from demur.workflows.capture import ShardParts, ShardTask

QUIET = 0
"""llama.cpp's log: errors alone."""


class LlamaCppReader:
    """Reads shards with llama.cpp.

    Args:
        path: A GGUF file of F16 or BF16 weights.
        num_threads: That it computes with.

    Raises:
        ConfigError: There is no such file, or its weights are quantised.
    """

    def __init__(self, path: Path, *, num_threads: int = 1) -> None:
        self._path = path
        self._num_threads = num_threads
        self._format = float_format(path)

    def identified(self, loaded: LoadedModel) -> LoadedModel:
        """Return the model under the identity of its states here, so that shards are not mixed."""
        own = replace(loaded.model_id, dtype=f"{self._format.lower()} in llama.cpp")
        return replace(loaded, model_id=own)

    def __call__(self, task: ShardTask) -> ShardParts:
        """Read shards, one after another.

        Raises:
            CapabilityError: A read asks for more than the final norm of the last token.
            DataError: llama.cpp could not read a prompt.
        """
        _require_last_norm(task.reads)
        server = self._server(max(map(len, task.prompts)))
        for shard in task.shards:
            prompts = task.prompts_of(shard)
            states = np.stack([_last_state(server, prompt) for prompt in prompts])[:, None]
            values: dict[Read, Values] = dict.fromkeys(task.reads, states)
            yield shard, np.arange(len(prompts)), Readings(values)  # [prompt, 1, d_model]

    def _server(self, num_tokens: int) -> xllamacpp.Server:
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
        params.embd_normalize = -1  # as they are
        params.n_parallel = 1
        params.n_ctx = params.n_batch = params.n_ubatch = num_tokens + 1  # a prompt, a batch
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._num_threads
        params.verbosity = QUIET
        params.api_keys = [secrets.token_hex()]  # it listens on a local port, for nobody
        return xllamacpp.Server(params)


def _require_last_norm(reads: Sequence[CaptureSpec]) -> None:
    for read in reads:
        if read != CaptureSpec((-1,), site="final_norm"):
            raise CapabilityError(
                f"llama.cpp gives the last token's final norm alone, not {read.as_dict()}: read "
                "layers -1 at the site final_norm, or use --engine transformers"
            )


def _last_state(server: xllamacpp.Server, prompt: Prompt) -> Array:
    answer = server.handle_embeddings({"input": [list(prompt.token_ids)], "model": ""})
    try:
        return np.asarray(answer["data"][0]["embedding"], dtype=np.float32)
    except KeyError:
        raise DataError(f"llama.cpp could not read a prompt of {len(prompt)} tokens") from None
