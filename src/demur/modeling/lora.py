"""Puts low-rank adapters into chosen blocks of a model, whatever the modules are called.

PEFT makes the adapters and names their weights, so that what is trained here loads there. Blocks
are found by structure; of a block all linear maps are adapted, or those of one part. Below the
lowest adapted block nothing takes a gradient, so that autograd keeps nothing of it.

Paper: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), arXiv 2106.09685:
W x + (alpha / rank) B A x, with A random and B zero at the start.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from demur.core.errors import CapabilityError, ConfigError
from demur.core.reads import Site
from demur.modeling.blocks import Parts
from demur.modeling.load import LoadedModel
from demur.modeling.quiet import quiet

AdaptedModules = Literal["all", "attention", "mlp"]
_SITES: dict[str, Site] = {"attention": "attn_out", "mlp": "mlp_out"}


@dataclass(frozen=True)
class Lora:
    """Which adapters a model gets."""

    rank: int
    alpha: int
    """What an adapter adds is multiplied by alpha / rank."""
    layers: tuple[int, ...] | None = None
    """0-based blocks; negative ones count from the end; None is all of them."""
    modules: AdaptedModules = "all"
    """Of a block: all linear maps, or those of its attention or of its MLP."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.layers is not None and not self.layers:
            raise ConfigError("layers is empty: name a block at least, or leave it out for all")
        if self.modules not in get_args(AdaptedModules):
            raise ConfigError(
                f"modules is {self.modules!r}: expected one of {get_args(AdaptedModules)}"
            )

    def blocks(self, parts: Parts) -> tuple[int, ...]:
        """Return the blocks as numbers from 0, in ascending order.

        Raises:
            ConfigError: There is no such block.
        """
        if self.layers is None:
            return tuple(range(len(parts.blocks)))
        return tuple(sorted({parts.layer(layer) for layer in self.layers}))


class Adapted:
    """A model with adapters, which alone are trained; it starts as the model itself.

    Args:
        loaded: A copy that is the caller's own: its linear maps are wrapped.
        lora: Which adapters.
        seed: Of their first weights.

    Raises:
        CapabilityError: A block has no linear map, or no such single part.
        ConfigError: There is no such block.
    """

    def __init__(self, loaded: LoadedModel, lora: Lora, *, seed: int) -> None:
        self.loaded = loaded
        names, modules = _adapted(loaded, lora)
        self._config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=names,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules),
        )
        # PEFT asks transformers for a property that is deprecated, which warns.
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            self._model: Any = get_peft_model(loaded.model, self._config)
        self._model.eval()
        self._is_mixed = loaded.model.dtype == torch.bfloat16
        if loaded.device.type == "cpu" and self._is_mixed:
            # The way back of the fused attention takes twice as long there.
            loaded.model.set_attn_implementation("eager")

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights by name, float32; they are the ones that the model uses."""
        return {
            name: weight for name, weight in self._model.named_parameters() if weight.requires_grad
        }

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is as it was without adapters."""
        found: AbstractContextManager[None] = self._model.disable_adapter()
        return found

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let a bfloat16 model compute what adapters add in bfloat16, for as long as it lasts.

        The weights stay float32, and so do their gradients. PEFT by itself turns what an adapter is
        given, and what it adds, into float32: on a CPU a third of a step's time.
        """
        if not self._is_mixed:
            yield
            return
        with (
            disable_input_dtype_casting(self._model),
            torch.autocast(self.loaded.device.type, dtype=torch.bfloat16),
        ):
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the weights under the names that PEFT gives them in a file."""
        state = get_peft_model_state_dict(self._model)
        return {
            name: weight.detach().to("cpu", copy=True).contiguous()
            for name, weight in sorted(state.items())
        }

    def config(self) -> bytes:
        """Return the content of `adapter_config.json`."""
        fields = self._config.to_dict()
        fields["base_model_name_or_path"] = self.loaded.model_id.name
        fields["inference_mode"] = True
        return (json.dumps(fields, indent=2, sort_keys=True, default=sorted) + "\n").encode()


def _adapted(loaded: LoadedModel, lora: Lora) -> tuple[list[str], list[nn.Module]]:
    """Return the full names and the modules of the linear maps that get an adapter."""
    wanted = {
        id(linear)
        for block in lora.blocks(loaded.parts)
        for part in _parts(loaded.parts, block, lora.modules)
        for linear in _linear(part.modules())
    }
    found = [(name, of) for name, of in loaded.model.named_modules() if id(of) in wanted]
    if not found:
        raise CapabilityError(
            f"no linear map was found in the {lora.modules} modules of the chosen blocks of "
            f"{loaded.model_id.name}: adapt all modules, or other blocks"
        )
    return [name for name, _ in found], [module for _, module in found]


def _parts(parts: Parts, block: int, modules: AdaptedModules) -> Sequence[nn.Module]:
    if modules == "all":
        return [parts.blocks[block]]
    return [parts.module(block, _SITES[modules])]


def _linear(modules: Iterator[nn.Module]) -> Iterator[nn.Module]:
    return (module for module in modules if isinstance(module, nn.Linear | Conv1D))
