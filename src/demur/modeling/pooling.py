"""Pools the states of a prompt's tokens as they come out of a block."""

import torch
from torch import Tensor

from demur.core.reads import CaptureSpec

RMS_EPSILON = 1e-12
"""Added to a mean square before its root is taken."""
NUMBERS_AT_ONCE = 2**19
"""That a CPU turns into float32 in one piece."""
NUMBERS_A_CHUNK = 2**17
"""Of more than these: so few that they are still in its cache when they are used."""


def normalised(states: Tensor, spec: CaptureSpec) -> Tensor:
    """Return states [..., d_model] as a read wants those of single tokens."""
    if spec.normalise == "none":
        return states
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + RMS_EPSILON)


class Pooling:
    """Pools states over positions.

    Args:
        spec: With a pool.
    """

    def __init__(self, spec: CaptureSpec) -> None:
        self._spec = spec
        self._chunk = torch.empty(0)

    def __call__(self, states: Tensor) -> Tensor:
        """Return states [..., position, d_model] normalised and pooled: [..., d_model], float32."""
        if self._spec.pool == "mean" and self._spec.normalise == "rms":
            return self._mean_direction(states)
        states = normalised(states.float(), self._spec)
        return states.mean(-2) if self._spec.pool == "mean" else states.amax(-2)

    def _mean_direction(self, states: Tensor) -> Tensor:
        """Return the mean of states over their root mean square."""
        num_positions, d_model = states.shape[-2:]
        if states.device.type != "cpu" or states.numel() <= NUMBERS_AT_ONCE or states.ndim > 2:
            return _sum_of_directions(states.float()).div_(num_positions)
        found = torch.zeros(1, d_model)
        for part in torch.split(states, max(1, NUMBERS_A_CHUNK // d_model)):
            values = self._float(part)
            found.addmm_(_scales(values).unsqueeze(0), values)
        return found[0].div_(num_positions)

    def _float(self, part: Tensor) -> Tensor:
        """Return states as float32, in memory that is used again for the next ones."""
        if part.dtype == torch.float32:
            return part
        if self._chunk.numel() < part.numel():
            self._chunk = torch.empty(part.shape)
        return self._chunk[: len(part)].copy_(part)


def _sum_of_directions(states: Tensor) -> Tensor:
    """Return the sum [..., d_model] of float32 states over their root mean square."""
    found: Tensor = (_scales(states).unsqueeze(-2) @ states).squeeze(-2)
    return found


def _scales(states: Tensor) -> Tensor:
    """Return one over the root mean square of float32 states, [..., position]."""
    squares = torch.linalg.vector_norm(states, dim=-1).square_().mul_(1 / states.shape[-1])
    found: Tensor = squares.add_(RMS_EPSILON).rsqrt_()
    return found
