"""Responders' artifacts with random arrays of a tiny model's shapes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from demur.core.adapters import LoraFolder
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.trained import Trained, save_trained
from demur.modeling.draft import DraftHead
from demur.modeling.load import LoadedModel
from tests.adapters import lora, with_manifest
from tests.tiny import tiny

Content = tuple[Mapping[str, Array], Mapping[str, Any]]
"""Arrays and fields."""


def trained(method: str, folder: Path, *, model: LoadedModel | None = None) -> Trained:
    """Write an artifact of a method, and read it.

    Args:
        method: Of a responder.
        folder: To write.
        model: That it is for; None is the tiny one.
    """
    of = model or tiny()
    tensors, fields = _CONTENTS[method](of)
    save_trained(
        folder,
        method=method,
        model_id=of.model_id,
        tensors=tensors,
        fields=fields,
        provenance={},
        card="Of random numbers.\n",
    )
    return Trained.read(folder)


def made(method: str, folder: Path) -> Trained | LoraFolder:
    """Write what a trainer would have left for a responder of the tiny model, and read it."""
    if method == "adapter":
        return with_manifest(lora(folder, tiny()), tiny())
    return trained(method, folder)


def _refusal_head(model: LoadedModel) -> Content:
    rng = np.random.default_rng(0)
    shape = tuple(model.model.get_output_embeddings().weight.shape)
    return {"head": rng.normal(size=shape).astype(np.float16)}, {}


def _candidate_reranking(model: LoadedModel) -> Content:
    rng = np.random.default_rng(0)
    draft = DraftHead(model, CaptureSpec((-1,), site="final_norm")).tensors()
    tensors = {name: rng.normal(size=tuple(of.shape)) for name, of in draft.items()}
    tensors["weights"] = rng.normal(size=model.parts.d_model)
    arrays = {name: array.astype(np.float32) for name, array in tensors.items()}
    return arrays, {"layer": -1, "site": "final_norm", "sign": 1}


def _steering(model: LoadedModel) -> Content:
    vectors = np.random.default_rng(0).normal(size=(2, model.parts.d_model))
    fields = {"layers": [1, 2], "from_position": "user_end"}
    return {"vectors": vectors.astype(np.float32)}, fields


def _soft_prompt(model: LoadedModel) -> Content:
    text = "Be careful."
    num_tokens = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(num_tokens, model.parts.d_model)).astype(np.float32)
    return {"embeddings": embeddings}, {"text": text}


_CONTENTS: Mapping[str, Callable[[LoadedModel], Content]] = {
    "candidate_reranking": _candidate_reranking,
    "refusal_head": _refusal_head,
    "soft_prompt": _soft_prompt,
    "steering": _steering,
}
MADE = (*_CONTENTS, "adapter")
"""The responders that read an artifact."""
