"""What of guard.toml holds under `vllm serve`, and what a single request may ask for."""

from typing import Literal, get_args

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import UseAdapter
from demur.core.types import ModelId
from demur.guard.packaged import FALLBACK, PACKAGED
from demur.guard.responding import load_responder, loads_of, route_of
from demur.responders.fixed_reply import FixedReply
from demur.serving.settings import Settings

Policy = Literal["enforce", "observe", "score"]
ENFORCE: Policy = "enforce"
OBSERVE: Policy = "observe"
"""Answer as if unguarded, and say what would have happened."""
SCORE: Policy = "score"
"""Judge, and answer nothing."""
ASKED_BY = "demur_policy"
"""In a request's vllm_xargs: its policy."""

ANSWER = "answer"
"""In a statement, in place of a policy: the request answers one that was flagged."""
ANSWERING_AGAIN = ("safety_prompt", "adapter")
"""Routes of which the reply is drawn by another request."""

_VLLMS_OWN = {"model", "engine", "dtype", "model_name", "host", "port", "default_max_tokens"}
_HOLDING = {"limits": {"max_moderation_inputs"}, "vllm": {"clients_may_observe", "raw_prompts"}}
"""Of these tables, what is no option of vLLM."""


def require_possible(settings: Settings) -> None:
    """Refuse settings that would not hold.

    Raises:
        CapabilityError: There is one; it is named.
    """
    refused = {
        "api_keys": (bool(settings.api_keys), "give vllm serve --api-key"),
        "reply.detector": (settings.reply.detector is not None, "replies are not watched here"),
        "upstream.url": (settings.upstream.url is not None, "vLLM answers by itself"),
        "audit.path": (settings.audit.path is not None, "verdicts go to vLLM's log"),
        "responder": (
            settings.on_flagged == "respond"
            and route_of(responder_line(settings)) not in (FALLBACK, *ANSWERING_AGAIN),
            f"only {FALLBACK}, {' and '.join(ANSWERING_AGAIN)} can answer here",
        ),
    }
    found = [f"{name}: {why}" for name, (is_set, why) in refused.items() if is_set]
    if found:
        raise CapabilityError(
            f"the plugin for vllm serve cannot do what guard.toml asks for: {'; '.join(found)}"
        )


def ignored(settings: Settings) -> list[str]:
    """Return the settings that were given in vain, since options of vLLM hold in their place."""
    tables = {name: getattr(settings, name).model_fields_set - _HOLDING[name] for name in _HOLDING}
    found = {f"{name}.{key}" for name, keys in tables.items() for key in keys}
    return sorted(found | (_VLLMS_OWN & settings.model_fields_set))


def routes_again(settings: Settings) -> bool:
    """Tell whether flagged prompts are answered by another request."""
    return flagged_route(settings) in ANSWERING_AGAIN


def adapters_of(settings: Settings, model_id: ModelId) -> list[UseAdapter]:
    """Return the adapters that the engine has to hold.

    Raises:
        DemurError: What guard.toml names does not exist, or does not fit.
    """
    if not routes_again(settings):
        return []
    loads = loads_of(responder_line(settings), model_id)
    return [of for of in loads if isinstance(of, UseAdapter)]


def responder_line(settings: Settings) -> str:
    """Return who answers flagged prompts."""
    return FALLBACK if settings.responder == PACKAGED else settings.responder


def flagged_route(settings: Settings) -> str:
    """Return the route of flagged prompts."""
    responds = settings.on_flagged == "respond"
    return route_of(responder_line(settings)) if responds else settings.on_flagged


def flagged_text(settings: Settings, model_id: ModelId) -> str:
    """Return what flagged prompts are told that no other request answers; empty if it is an error.

    Raises:
        ConfigError: The responder's line is wrong.
    """
    if settings.on_flagged != "respond":
        return settings.refusal if settings.on_flagged == "refuse" else ""
    line = FALLBACK if routes_again(settings) else responder_line(settings)
    responder = load_responder(line, model_id)
    assert isinstance(responder, FixedReply), "require_possible comes first"
    return responder.text


def policy_of(asked: object, settings: Settings) -> Policy:
    """Return what becomes of a request.

    Args:
        asked: What it asks for; None is the server's own policy.
        settings: Of the server.

    Raises:
        DataError: It asks for what it may not have.
    """
    own = OBSERVE if settings.observe else ENFORCE
    if asked is None:
        return own
    allowed: list[Policy] = [
        policy
        for policy in get_args(Policy)
        if policy != OBSERVE or own == OBSERVE or settings.vllm.clients_may_observe
    ]
    for policy in allowed:
        if asked == policy:
            return policy
    raise DataError(f"{ASKED_BY}: this server allows {' or '.join(allowed)}")
