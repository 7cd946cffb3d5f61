"""Draft heads of random numbers, on disk as an artifact holds them."""

from pathlib import Path

import torch

from demur.core.interventions import Draft
from demur.core.reads import CaptureSpec
from demur.modeling.draft import DraftHead
from demur.modeling.load import LoadedModel
from tests.interventions import stored

READ = CaptureSpec((2,))


def random_draft(model: LoadedModel, read: CaptureSpec = READ) -> DraftHead:
    """Return a draft head whose linear map is random, the same at each call."""
    head = DraftHead(model, read)
    generator = torch.Generator().manual_seed(0)
    head.join.weight.copy_(torch.randn(head.join.weight.shape, generator=generator) / 8)
    return head


def drafted(model: LoadedModel, folder: Path, read: CaptureSpec = READ) -> Draft:
    """Write a random draft head, and return what an intervention holds of it."""
    tensors = random_draft(model, read).tensors()
    return Draft(tuple(stored(folder, name, tensor.detach()) for name, tensor in tensors.items()))
