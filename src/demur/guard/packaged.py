"""The adapters that ship, and who answers flagged prompts where nobody was named.

pretrained             the packaged adapter of the model, or fixed_reply where none ships
adapter:pretrained@2   the packaged adapter of the model, at twice its strength
"""

from pathlib import Path

from demur.core.adapters import LoraFolder
from demur.core.errors import ConfigError
from demur.core.folders import MANIFEST, read_manifest
from demur.core.interventions import UseAdapter
from demur.core.protocols import Engine
from demur.core.trained import KIND
from demur.core.types import ModelId
from demur.guard.loading import PRETRAINED_PATH

PACKAGED = "pretrained"
ADAPTERS_PATH = PRETRAINED_PATH / "adapters"
FALLBACK = "fixed_reply"


def packaged_adapter(model_id: ModelId | None) -> Path | None:
    """Return the folder of the adapter that ships for a model, if one does.

    Args:
        model_id: Of the model whose replies it would change; None is any model.
    """
    for manifest in sorted(ADAPTERS_PATH.glob(f"*/{MANIFEST}")):
        # Its other files are read and checked once it is loaded.
        trained_on = ModelId(**read_manifest(manifest.parent, kind=KIND)["model_id"])
        if model_id is None or not trained_on.differences(model_id):
            return manifest.parent
    return None


def responder_line(line: str, engine: Engine) -> str:
    """Return a responder's line, with the default spelled out for an engine.

    An engine that cannot run adapters, or whose model has none, refuses in fixed words.

    Args:
        line: As `load_responder` takes it, or `pretrained`.
        engine: What answers flagged prompts.
    """
    if line != PACKAGED:
        return line
    has_one = UseAdapter in engine.capabilities and packaged_adapter(engine.model_id) is not None
    return f"{LoraFolder.method}:{PACKAGED}" if has_one else FALLBACK


def required_adapter(model_id: ModelId | None) -> Path:
    """Return the folder of the adapter that ships for a model; see `packaged_adapter`.

    Raises:
        ConfigError: None does.
    """
    folder = packaged_adapter(model_id)
    if folder is None:
        name = "any model" if model_id is None else model_id.name
        raise ConfigError(
            f"no packaged adapter was trained on {name}: train one with `demur train sft` and name "
            "its folder, as in adapter:FOLDER"
        )
    return folder
