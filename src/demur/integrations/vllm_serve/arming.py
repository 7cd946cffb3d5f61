"""Arms the arguments of an engine that plain vLLM is about to start."""

import logging
from typing import Any

from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs

from demur.core.errors import CapabilityError
from demur.core.types import ModelId
from demur.engines._columns import Columns
from demur.engines.vllm.adapters import engine_arguments
from demur.engines.vllm.arguments import forcing, guarding
from demur.engines.vllm.reader import CONFIG_KEY
from demur.guard.loading import readouts_of
from demur.integrations.vllm_serve.policy import adapters_of, ignored, require_possible
from demur.integrations.vllm_serve.signing import make_key
from demur.modeling.identity import identify_unloaded
from demur.serving.settings import load_settings

log = logging.getLogger("vllm.demur")

WORKERS = "demur.integrations.vllm_serve.{}_worker.Judging{}Worker"
MODEL_KEY = "demur_model"
"""In vLLM's `additional_config`: the identity of the model."""


def arm(args: EngineArgs) -> None:
    """Let an engine compute the read-outs of guard.toml, and judge in its workers.

    An engine that is demur's own, or is armed, is left as it is.

    Raises:
        CapabilityError: vLLM is told to do something that cannot be guarded, or guard.toml asks for
            what the plugin cannot do.
        ConfigError: guard.toml is wrong, or names what does not exist.
        ModelMismatchError: A detector was fitted on another model.
    """
    options = dict(args.additional_config or {})
    if CONFIG_KEY in options:
        return
    settings = load_settings(None, {})
    require_possible(settings)
    _require_guardable(args)
    in_vain = ignored(settings)
    if in_vain:
        log.warning("guard.toml: options of vLLM hold in place of %s", ", ".join(in_vain))
    model = args.create_model_config()
    model_id = identity_of(model)
    columns = Columns.of(
        readouts_of(settings.detectors, model_id),
        num_blocks=model.hf_config.get_text_config(decoder=True).num_hidden_layers,
    )
    make_key()
    own = {
        **guarding(columns, workers=WORKERS),
        **forcing(),
        **engine_arguments(adapters_of(settings, model_id)),
    }
    own["logits_processors"] = [*(args.logits_processors or []), *own["logits_processors"]]
    own["additional_config"] |= {**options, MODEL_KEY: model_id.as_dict()}
    for name, value in own.items():
        setattr(args, name, value)


def is_armed(config: VllmConfig) -> bool:
    """Tell whether an engine is one of those that were armed here."""
    return MODEL_KEY in (config.additional_config or {})


def model_of(config: VllmConfig) -> ModelId:
    """Return the identity of an armed engine's model."""
    return ModelId(**config.additional_config[MODEL_KEY])


def identity_of(model: ModelConfig) -> ModelId:
    """Return the identity of a model that vLLM is about to load."""
    tokenizer: Any = AutoTokenizer.from_pretrained(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
    name = str(model.model).rstrip("/").rsplit("/", 1)[-1].lower()
    return identify_unloaded(model.hf_config, tokenizer, name=name, dtype=str(model.dtype))


def _require_guardable(args: EngineArgs) -> None:
    refused = {
        "speculative decoding": bool(args.speculative_config),
        "pipeline parallelism": args.pipeline_parallel_size > 1,
        "data parallelism": args.data_parallel_size > 1,
        "LoRA adapters, for which no detector is calibrated": bool(args.enable_lora),
        "pooling models": args.runner == "pooling",
        "asynchronous scheduling": args.async_scheduling is True,
        f"the worker class {args.worker_cls}": args.worker_cls != "auto",
    }
    found = [name for name, is_on in refused.items() if is_on]
    if found:
        raise CapabilityError(
            f"demur does not guard {' or '.join(found)}: leave it out, or unset DEMUR_GUARD"
        )
