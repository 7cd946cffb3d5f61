"""How a fit weighs its prompts: the choices that supervised methods share."""

from typing import Literal, get_args

from demur.core.errors import ConfigError

Balance = Literal["sources", "labels", "none"]
"""What weighs the same: the sources of each label, the two labels, or every prompt."""


def require_balance(balance: str) -> None:
    """Refuse an unknown way to weigh prompts.

    Raises:
        ConfigError: It is none of `Balance`.
    """
    if balance not in get_args(Balance):
        raise ConfigError(f"balance is {balance!r}: expected one of {get_args(Balance)}")
