"""Parameters that a user gives as NAME=VALUE."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from demur.core.errors import ConfigError


def parameters(given: Sequence[str], known: Iterable[str]) -> dict[str, Any]:
    """Return the values by name; a value is JSON where it can be read so, or else a text.

    Args:
        given: Such as `hidden=128`.
        known: The names that there are.

    Raises:
        ConfigError: A parameter is malformed or unknown.

    >>> parameters(["hidden=128", "balance=labels"], ["hidden", "balance"])
    {'hidden': 128, 'balance': 'labels'}
    """
    names = sorted(known)
    values: dict[str, Any] = {}
    for parameter in given:
        name, has_value, value = parameter.partition("=")
        if not has_value or name not in names:
            raise ConfigError(
                f"--parameter {parameter!r}: expected NAME=VALUE with a name of {names}"
            )
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values
