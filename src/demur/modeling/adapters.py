"""Runs LoRA adapters beside a model: low-rank additions to linear maps, for some rows of a batch.

Hooks add scale * scaling * B (A x) to what a linear map gives, for the rows that are under an
adapter, and are gone after the pass. No weight is touched, and rows of several adapters and scales
share a pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from demur.core.adapters import WEIGHTS, AdapterRef, LoraFolder, LowRankMap
from demur.core.errors import CapabilityError, DataError, ModelMismatchError
from demur.modeling.load import LoadedModel


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one linear map, in float32, as PEFT computes it."""

    a: Tensor
    """[rank, d_in]."""
    b: Tensor
    """[d_out, rank]."""
    scaling: float

    def of(self, inputs: Tensor, scales: Tensor) -> Tensor:
        """Return what outputs get, [row, ..., d_out], float32.

        Args:
            inputs: Of the linear map, [row, ..., d_in].
            scales: Of the rows, [row], float32.
        """
        low = nn.functional.linear(inputs.to(self.a.dtype), self.a)  # [row, ..., rank]
        factors = (self.scaling * scales).reshape(-1, *(1 for _ in low.shape[1:]))
        return nn.functional.linear(low * factors, self.b)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter on a model's device."""

    maps: Mapping[nn.Module, LowRank]
    """By linear map of the model."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """An adapter as one row has it."""

    adapter: Adapter
    scale: float
    """Not 0."""


class Adapters:
    """Adapters of a model, each loaded once.

    Args:
        loaded: The model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._found: dict[AdapterRef, Adapter] = {}

    def get(self, ref: AdapterRef) -> Adapter:
        """Return an adapter; its folder is read and checked when it is first asked for.

        Raises:
            ConfigError: There is no such folder.
            DataError: It has changed, or holds a number that is not finite.
            ModelMismatchError: It does not fit the model.
        """
        if ref not in self._found:
            self._found[ref] = _load(self._loaded, ref.checked())
        return self._found[ref]


def _load(loaded: LoadedModel, folder: LoraFolder) -> Adapter:
    named = dict(loaded.model.named_modules())
    of_block = {id(m): n for n, block in enumerate(loaded.parts.blocks) for m in block.modules()}
    maps: dict[nn.Module, LowRank] = {}
    with safe_open(f"{folder.folder}/{WEIGHTS}", framework="pt") as file:
        for of in folder.maps:
            module = _fitting(of, named, of_block, folder)
            a, b = (_finite(file.get_tensor(key), key, folder) for key in of.keys)
            device = next(module.parameters()).device
            maps[module] = LowRank(
                a.to(device, torch.float32), b.to(device, torch.float32), of.scaling
            )
    return Adapter(maps)


def _fitting(
    of: LowRankMap,
    named: Mapping[str, nn.Module],
    of_block: Mapping[int, int],
    folder: LoraFolder,
) -> nn.Module:
    """Return the linear map of the model that a part of an adapter belongs to.

    Raises:
        ModelMismatchError: There is none, or one of another shape.
    """
    module = named.get(of.module)
    wanted = (of.shape_b[0], of.shape_a[1])
    if module is None or of_block.get(id(module)) != of.layer:
        raise ModelMismatchError(
            f"{folder.folder} adapts {of.module}, but the model has no such module in block "
            f"{of.layer}: it was made for another model"
        )
    found = _shape(module)
    if found is None:
        raise ModelMismatchError(
            f"{folder.folder} adapts {of.module}, which is a {type(module).__name__} in this "
            "model: expected a linear map"
        )
    if found != wanted:
        raise ModelMismatchError(
            f"{folder.folder} adapts {of.module} as a map of shape {list(wanted)}, but the model's "
            f"is {list(found)}: it was made for another model"
        )
    return module


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """Return a linear map's [d_out, d_in]; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.nf, module.nx) if isinstance(module, Conv1D) else None


def _finite(tensor: Tensor, key: str, folder: LoraFolder) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise DataError(f"{key} in {folder.folder} holds a number that is not finite")
    return tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """What one adapter adds to one linear map in a pass."""

    low_rank: LowRank
    scales: Tensor
    """Of its rows, [row]."""
    rows: Tensor | None
    """Of the batch, in ascending order; None for all of them."""

    def added(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return an output of the linear map with what the adapter adds to it."""
        if self.rows is None:
            return (output + self.low_rank.of(inputs, self.scales)).to(output.dtype)
        changed = output.clone()
        theirs = output[self.rows] + self.low_rank.of(inputs[self.rows], self.scales)
        changed[self.rows] = theirs.to(output.dtype)
        return changed


@contextmanager
def adapting(rows: Mapping[int, Scaled], *, num_rows: int) -> Iterator[None]:
    """Put rows under adapters while the model runs inside the block; hooks are always removed.

    Args:
        rows: By row of the batch; all tokens that the pass reads are changed.
        num_rows: Of the batch.

    Raises:
        CapabilityError: The model computes a linear map without calling it as a module.
    """
    parts: dict[nn.Module, list[_Part]] = {}
    for scaled_rows in _alike(rows):
        adapter = rows[scaled_rows[0]].adapter
        device = next(iter(adapter.maps.values())).a.device
        scales = torch.tensor([rows[row].scale for row in scaled_rows], device=device)
        is_all = len(scaled_rows) == num_rows
        picked = None if is_all else torch.tensor(scaled_rows, device=device)
        for module, low_rank in adapter.maps.items():
            parts.setdefault(module, []).append(_Part(low_rank, scales, picked))
    unseen = set(parts)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        unseen.discard(module)
        for part in parts[module]:
            output = part.added(inputs[0], output)
        return output

    with ExitStack() as stack:
        for module in parts:
            stack.enter_context(module.register_forward_hook(add))
        yield
    if unseen:
        raise CapabilityError(
            f"{len(unseen)} of {len(parts)} adapted linear maps were not called as modules: this "
            "model computes them in another way, and an adapter cannot change them; use another "
            "responder"
        )


def _alike(rows: Mapping[int, Scaled]) -> Sequence[list[int]]:
    """Return the rows of each adapter, in ascending order."""
    found: dict[int, list[int]] = {}
    for row in sorted(rows):
        found.setdefault(id(rows[row].adapter), []).append(row)
    return list(found.values())
