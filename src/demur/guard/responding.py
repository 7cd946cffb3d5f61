"""Makes responders of a line of text: a method with its fields, or with the artifact it reads.

fixed_reply:I cannot help with that.
refusal_head:my-head
steering:my-vectors@-1                        the same as steering:my-vectors,scale=-1
adapter:my-adapter@0.5                        a folder of PEFT, or one that was trained by demur
adapter:pretrained                            the adapter that ships for the model
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from demur.core import by_name, registry
from demur.core.adapters import LoraFolder
from demur.core.errors import ConfigError
from demur.core.folders import require_same_model
from demur.core.interventions import CacheUse, EndReply, MidReply, UseAdapter
from demur.core.preparing import Loadable, LoadingResponder
from demur.core.protocols import Responder
from demur.core.trained import Trained
from demur.core.types import Chat, ModelId
from demur.guard.packaged import PACKAGED, required_adapter

TRAINED = "trained"
"""The first field of a responder that reads an artifact."""
SCALE = "scale"
"""The field that `@` sets."""
IN_MID_REPLY = ("adapter", "fixed_reply")
"""Methods that can take over a reply that is under way."""


def route_of(line: str) -> str:
    """Return the route that a responder's line stands for: its method.

    >>> route_of("refusal-head:my-head")
    'refusal_head'
    """
    return by_name.method_in(line)


def load_responder(line: str, model_id: ModelId) -> Responder:
    """Make a responder for a model.

    Args:
        line: A method's name, with its fields or its artifact's folder after a colon.
        model_id: Of the model whose replies it changes.

    Raises:
        ConfigError: There is no such method, field or artifact, or one is missing.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    method, given = _parsed(line, model_id)
    trained: Trained | LoraFolder | None = given.get(TRAINED)
    if trained is not None and trained.model_id is not None:
        require_same_model(trained.model_id, model_id, what=f"responder {line!r}")
    try:
        return method(**given)
    except TypeError as error:
        raise ConfigError(f"responder {line!r}: {error}") from error


def loads_of(line: str, model_id: ModelId) -> tuple[Loadable, ...]:
    """Return what an engine has to hold for a responder before any request comes.

    Args:
        line: As of `load_responder`.
        model_id: Likewise.

    Raises:
        ConfigError: As of `load_responder`.
        DataError: Likewise.
        ModelMismatchError: Likewise.
    """
    responder = load_responder(line, model_id)
    return responder.loads if isinstance(responder, LoadingResponder) else ()


def check_responder(line: str) -> None:
    """See that a line means a responder, as far as that can be told without the model.

    Raises:
        ConfigError: There is no such method, field or artifact, or one is missing.
        DataError: The artifact is damaged.
    """
    if line != PACKAGED:
        _parsed(line, None)


def load_mid_reply(
    line: str | None, model_id: ModelId, *, cache: CacheUse = "recompute"
) -> MidReply:
    """Return what becomes of a reply that is flagged while it is decoded.

    Args:
        line: Of a responder that can take over there: adapter:FOLDER, or fixed_reply:TEXT for what
            was not shown yet. None ends the reply.
        model_id: Of the model that decodes.
        cache: Whether an adapter goes on from what the model has read, or reads it again.

    Raises:
        ConfigError: There is no such responder, or it cannot take over in the middle of a reply.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    if line is None:
        return EndReply()
    _require_mid_reply(line)
    # Neither method looks at what it is asked.
    intervention = load_responder(line, model_id).respond(Chat.from_text("flagged"), [])
    if isinstance(intervention, UseAdapter):
        return replace(intervention, cache=cache)
    return cast(MidReply, intervention)


def check_mid_reply(line: str) -> None:
    """See that a line means one that can take over a reply, as far as that can be told.

    Raises:
        ConfigError: There is no such responder, or it cannot.
        DataError: The artifact is damaged.
    """
    _require_mid_reply(line)
    check_responder(line)


def _require_mid_reply(line: str) -> None:
    if route_of(line) not in IN_MID_REPLY:
        raise ConfigError(
            f"responder {line!r} cannot take over in the middle of a reply: expected "
            "adapter:FOLDER or fixed_reply:TEXT"
        )


def _parsed(line: str, model_id: ModelId | None) -> tuple[type[Responder], dict[str, Any]]:
    """Return a responder's class and its fields, with what lies in its artifact.

    Args:
        line: See `load_responder`.
        model_id: What a packaged artifact has to fit; None is any model.
    """
    name, given = by_name.parse(line, kind="responders")
    method = cast(type[Any], registry.load("responders", name))
    artifact = {field.name: field.type for field in fields(method)}.get(TRAINED)
    if artifact is None:
        return method, given
    if TRAINED not in given:
        raise ConfigError(
            f"responder {name!r} reads what was trained: name its folder, as in {name}:FOLDER, or "
            f"make one with `demur train {_trainer_of(name)}`"
        )
    folder = str(given[TRAINED])
    if not Path(folder).is_dir() and "@" in folder:
        folder, scale = folder.rsplit("@", 1)
        given[SCALE] = _number(scale, line)
        if SCALE not in [field.name for field in fields(method)]:
            raise ConfigError(f"{line!r}: {name} has no scale that @ could set")
    if folder == PACKAGED and artifact is LoraFolder:
        folder = str(required_adapter(model_id))
    trained = cast(type[Trained | LoraFolder], artifact).read(Path(folder))
    if trained.method != name:
        raise ConfigError(
            f"{folder} holds a {trained.method!r} responder: load it as {trained.method}:{folder}"
        )
    return method, {**given, TRAINED: trained}


def _trainer_of(name: str) -> str:
    """Return the trainer that makes what a responder reads; several make adapters."""
    return name if name in registry.methods("trainers") else "sft"


def _number(text: str, line: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{line!r}: expected a number after @, got {text!r}") from None
