"""LoRA adapters as PEFT writes them: what a folder holds, checked before any model sees it.

adapter_config.json          rank, alpha, and what was switched on while training
adapter_model.safetensors    two matrices for each linear map that is adapted
demur.json                   for which model, and from which data; a folder of plain PEFT has none

Paper: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), arXiv 2106.09685:
W x + (alpha / r) B A x; Kalajdzievski, Rank Stabilization Scaling Factor (2023), arXiv 2312.03732:
alpha / sqrt(r).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError, safe_open

from demur.core.errors import ConfigError, DataError
from demur.core.folders import MANIFEST, read_checked, read_json, read_manifest
from demur.core.tensors import file_sha256
from demur.core.trained import KIND
from demur.core.types import ModelId

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
# fmt: off
_UNDERSTOOD = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights",
}
"""Settings that say what an adapter computes."""
_OF_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type",
}
"""Settings that change nothing of it: which maps are adapted is told by the tensors."""
# fmt: on
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""First weights under which the model's own ones stay as they were."""


@dataclass(frozen=True)
class LowRankMap:
    """What is added to one linear map: scaling * B (A x)."""

    module: str
    """Path of the linear map in the model."""
    layer: int
    """The 0-based decoder block that it lies in."""
    shape_a: tuple[int, int]
    """[rank, d_in]."""
    shape_b: tuple[int, int]
    """[d_out, rank]."""
    scaling: float

    @property
    def keys(self) -> tuple[str, str]:
        """Names of A and B among the tensors."""
        return _key(self.module, "A"), _key(self.module, "B")


@dataclass(frozen=True)
class AdapterRef:
    """A reference to an adapter on disk, which must not change while it is in use."""

    folder: str
    sha256: str
    """Of both of its files."""
    first_layer: int
    """The lowest decoder block that it changes."""

    def checked(self) -> "LoraFolder":
        """Return the folder, if it still is what the reference was made of.

        Raises:
            ConfigError: There is no such folder any more.
            DataError: It has changed.
        """
        found = LoraFolder.read(Path(self.folder))
        if found.ref != self:
            raise DataError(
                f"{self.folder} has sha256 {found.sha256[:12]}, expected {self.sha256[:12]}: it "
                "was replaced while it was in use; load the responder again"
            )
        return found


@dataclass(frozen=True)
class LoraFolder:
    """An adapter's folder, without its arrays."""

    folder: str
    sha256: str
    """Of both of its files."""
    maps: tuple[LowRankMap, ...]
    """In the order of their names; at least one."""
    model_id: ModelId | None
    """The model that it was trained on; None for a folder of plain PEFT, whose shapes alone can be
    compared."""

    method: ClassVar[str] = "adapter"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check a folder; the arrays stay on disk.

        Raises:
            ConfigError: There is no adapter in the folder, or one of a kind that is more, or
                something else, than low-rank additions to the linear maps of decoder blocks.
            DataError: A file is damaged, or the files do not fit together.
        """
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ConfigError(
                    f"{folder} holds no adapter: expected a folder with {CONFIG} and {WEIGHTS}, as "
                    "PEFT and `demur train` write it"
                )
        config = read_json(folder / CONFIG)
        _require_plain(config, where=folder / CONFIG)
        digests = [file_sha256(folder / name) for name in (CONFIG, WEIGHTS)]
        return cls(
            folder=str(folder.resolve()),
            sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
            maps=_maps(config, _shapes(folder / WEIGHTS), where=folder),
            model_id=_model_id(folder),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder blocks that it changes, in ascending order."""
        return tuple(sorted({of.layer for of in self.maps}))

    @property
    def ref(self) -> AdapterRef:
        """What stands for the adapter in an intervention."""
        return AdapterRef(self.folder, self.sha256, self.layers[0])


def _require_plain(config: Mapping[str, Any], *, where: Path) -> None:
    """Refuse what is not plain LoRA.

    Raises:
        ConfigError: It is not.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{where} is of the type {kind!r}: demur runs LORA adapters only")
    if config.get("bias", "none") != "none":
        raise ConfigError(
            f"{where} has bias {config['bias']!r}: expected 'none'; demur leaves biases as they are"
        )
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"{where} has init_lora_weights {start!r}, which changes the model's own weights: "
            "convert it to plain LoRA with PEFT, or train it from another start"
        )
    for name in sorted(set(config) - _UNDERSTOOD - _OF_TRAINING):
        if config[name]:
            raise ConfigError(
                f"{where} sets {name} to {config[name]!r}: demur runs plain LoRA only, in which "
                "this is off; train the adapter without it"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in a file.

    Raises:
        DataError: It is no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file ({error}): copy it anew") from error


def _maps(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, where: Path
) -> tuple[LowRankMap, ...]:
    """Return what the tensors and the settings say of each linear map.

    Raises:
        ConfigError: A tensor is no part of a low-rank addition to a linear map of a block.
        DataError: A tensor is missing or has the wrong shape.
    """
    modules: set[str] = set()
    for key in shapes:
        named = _KEY.fullmatch(key)
        if named is None or not _NUMBER.search(named["module"]):
            raise ConfigError(
                f"{where / WEIGHTS} holds {key!r}: demur adapts the linear maps of decoder blocks "
                "only, no embeddings, heads, norms or magnitudes; train the adapter without it"
            )
        modules.add(named["module"])
    if not modules:
        raise DataError(f"{where / WEIGHTS} holds no tensors: train the adapter again")
    return tuple(_map(module, config, shapes, where=where) for module in sorted(modules))


def _map(
    module: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    where: Path,
) -> LowRankMap:
    rank = _setting(config, "r", "rank_pattern", module, where=where)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module, where=where)
    a, b = (shapes.get(_key(module, side), ()) for side in "AB")
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
        raise DataError(
            f"{where / WEIGHTS} has A {list(a)} and B {list(b)} of {module}: expected "
            f"[{rank:g}, d_in] and [d_out, {rank:g}], as {CONFIG} says; the files do not belong "
            "together"
        )
    numbers = _NUMBER.findall(module)
    if len(numbers) > 1:
        raise ConfigError(
            f"{where / WEIGHTS} adapts {module}, one of several experts: demur adapts linear maps "
            "that every token goes through"
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRankMap(module, int(numbers[0]), (a[0], a[1]), (b[0], b[1]), scaling)


def _setting(
    config: Mapping[str, Any], name: str, pattern_name: str, module: str, *, where: Path
) -> float:
    """Return a setting as it holds for a module: the first pattern that fits, or the general one.

    Raises:
        DataError: It is no number over 0.
    """
    patterns: Mapping[str, Any] = config.get(pattern_name) or {}
    fitting = _fitting(list(patterns), module)
    value = config.get(name) if fitting is None else patterns[fitting]
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"{where / CONFIG} has {name} {value!r}: expected a number over 0")
    return value


def _fitting(patterns: Sequence[str], module: str) -> str | None:
    """Return the first pattern that PEFT would use for a module."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)


def _model_id(folder: Path) -> ModelId | None:
    """Return the model that an adapter was trained on, if the folder says it.

    Raises:
        ConfigError: The folder says that it is something else.
        DataError: What it says is damaged, or belongs to other files.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder, kind=KIND)
    try:
        method, model_id = manifest["method"], ModelId(**manifest["model_id"])
        expected = {name: manifest["sha256"][name] for name in (CONFIG, WEIGHTS)}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / MANIFEST} is incomplete or damaged ({error}): train the adapter again"
        ) from error
    if method != LoraFolder.method:
        raise ConfigError(f"{folder} holds a {method!r} responder: load it as {method}:{folder}")
    for name, sha256 in expected.items():
        read_checked(folder / name, sha256)
    return model_id


def _key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"
