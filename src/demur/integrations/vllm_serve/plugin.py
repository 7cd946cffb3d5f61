"""What vLLM finds by entry point; without VLLM_PLUGINS=demur and DEMUR_GUARD it changes nothing.

vLLM loads this file wherever both are installed, and so it imports nothing of either.
"""

import os
from typing import Any

from demur.core.registry import import_named
from demur.integrations.vllm_serve import NAME


class Idle:
    """An endpoint plugin that adds nothing."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Leave the application as it is."""

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Leave the state as it is."""


def is_wanted() -> bool:
    """Tell whether VLLM_PLUGINS names the guard, and DEMUR_GUARD its settings."""
    named = os.environ.get("VLLM_PLUGINS", "").split(",")
    return NAME in named and bool(os.environ.get("DEMUR_GUARD"))


def register() -> None:
    """Guard the engines of this process; for the group `vllm.general_plugins`."""
    if is_wanted():
        import_named("demur.integrations.vllm_serve.patches").install()


def endpoints() -> Any:
    """Return what vLLM's API server gets; for the group `vllm.endpoint_plugins`."""
    if not is_wanted():
        return Idle()
    return import_named("demur.integrations.vllm_serve.endpoints").Endpoints()
