"""Seals what one process of a server says of a request to another, so that no client can say it.

The seal is an HMAC-SHA256 over the statement and the prompt's tokens, with a key that was made when
the server started and that its processes inherit.
"""

import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from demur.core.errors import ConfigError

KEY_VARIABLE = "DEMUR_VLLM_KEY"
"""The environment variable that holds the key."""
_SEAL = "seal"


class Signer:
    """Seals and opens statements.

    Args:
        key: Known to the server's processes alone.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def shared(cls) -> Self:
        """Return the signer of this server.

        Raises:
            ConfigError: This process has inherited no key.
        """
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise ConfigError(f"{KEY_VARIABLE} is not set: start this process through vllm serve")
        return cls(bytes.fromhex(key))

    def sealed(self, statement: Mapping[str, Any], token_ids: Sequence[int]) -> dict[str, Any]:
        """Return a statement on a prompt with its seal.

        Args:
            statement: JSON without the key `seal`.
            token_ids: Of the prompt.
        """
        return {**statement, _SEAL: self._seal(statement, token_ids)}

    def opened(self, sealed: object, token_ids: Sequence[int]) -> dict[str, Any]:
        """Return a statement without its seal; empty if this server did not make it for the prompt.

        Args:
            sealed: Anything at all.
            token_ids: Of the prompt.
        """
        if not isinstance(sealed, Mapping) or not isinstance(sealed.get(_SEAL), str):
            return {}
        statement = {key: value for key, value in sealed.items() if key != _SEAL}
        try:
            expected = self._seal(statement, token_ids)
        except (TypeError, ValueError):  # it is no JSON
            return {}
        is_ours = hmac.compare_digest(expected.encode(), sealed[_SEAL].encode())
        return statement if is_ours else {}

    def _seal(self, statement: Mapping[str, Any], token_ids: Sequence[int]) -> str:
        said = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
        code = hmac.new(self._key, len(said).to_bytes(8, "big"), "sha256")
        code.update(said)
        code.update(np.asarray(token_ids, np.int64).tobytes())
        return code.hexdigest()


def make_key() -> None:
    """Make this server's key, unless it has one."""
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(32))
