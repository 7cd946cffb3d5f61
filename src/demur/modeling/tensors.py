"""Loads the tensors that interventions refer to, once, onto the model's device."""

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from demur.core.errors import DataError
from demur.core.tensors import TensorRef


class Tensors:
    """What was loaded, by reference.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: dict[tuple[TensorRef, torch.dtype], Tensor] = {}

    def get(
        self, ref: TensorRef, *, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return a tensor; its artifact is read and checked when it is first asked for.

        Args:
            ref: Names it.
            shape: That it must have.
            dtype: To convert it to.

        Raises:
            ConfigError: There is no such artifact.
            DataError: It has changed, holds no such tensor, or one of another shape.
        """
        key = (ref, dtype)
        if key not in self._loaded:
            self._loaded[key] = _read(ref).to(self._device, dtype)
        found = self._loaded[key]
        if tuple(found.shape) != shape:
            raise DataError(
                f"{ref.key} in {ref.artifact} has shape {tuple(found.shape)}: expected {shape}; it "
                "was made for another model"
            )
        return found


def _read(ref: TensorRef) -> Tensor:
    try:
        with safe_open(ref.checked_path(), framework="pt") as file:
            tensor: Tensor = file.get_tensor(ref.key)
    except SafetensorError as error:
        raise DataError(f"{ref.artifact} holds no tensor {ref.key!r} ({error})") from error
    if not torch.isfinite(tensor).all():
        raise DataError(f"{ref.key} in {ref.artifact} holds a number that is not finite")
    return tensor
