"""Names the machine and the software of a measurement."""

import torch

from demur.workflows import machine


def describe_machine() -> dict[str, object]:
    """Return what `demur.workflows.machine` says, and the GPU; None where there is none."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**machine.describe_machine(), "gpu": gpu}
