"""Registers demur's providers with inspect_ai, which loads this file through its entry point.

`demur/NAME` asks a server, `demur-local/MODEL` guards a model in the same process. Loading this
file loads nothing else of demur: inspect_ai loads the entry points of all packages, whichever
model it is to run.
"""

from inspect_ai.model import ModelAPI, modelapi

from demur.core.registry import import_named

__all__ = ["demur", "demur_local"]


@modelapi(name="demur")
def demur() -> type[ModelAPI]:
    """Return the provider that asks a running server."""
    found: type[ModelAPI] = import_named("demur.integrations._inspect_server").ServerAPI
    return found


@modelapi(name="demur-local")
def demur_local() -> type[ModelAPI]:
    """Return the provider that holds a guard itself."""
    found: type[ModelAPI] = import_named("demur.integrations._inspect_local").LocalAPI
    return found
