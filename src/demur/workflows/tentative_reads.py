"""Makes tentative reads of many chats, and keeps their states on disk: a chat is read once.

An appended text is read behind its prompt through the packed capture, since which tokens it has is
known beforehand; a reply is begun a chat at a time. There is a folder a model and read, with a
shard of states for each bunch of chats that was read. Shards are written whole, so an interrupted
run goes on where it stopped, and other sets share the folder.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from demur.core.errors import DataError
from demur.core.folders import write_synced
from demur.core.protocols import whole
from demur.core.readings import Array, Readings
from demur.core.reads import AppendedTokens, CaptureSpec, TentativeRead
from demur.core.types import Chat, Prompt
from demur.modeling.chat import ChatRenderer
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel
from demur.modeling.tentative import TentativeReads, require_room

TENTATIVE_VERSION = 1
"""Raised when the states that a tentative read yields change."""
CHATS_A_SHARD = 128
"""An interrupted run loses less than that."""

Open = Callable[[Sequence[CaptureSpec], Sequence[Prompt]], FastCapture]
"""Returns the fast capture path for some prompts."""


class StoredTentativeReads:
    """Makes the tentative reads that are not on disk yet.

    Args:
        loaded: The model that reads.
        renderer: Of its template.
        fast: Returns the capture path for prompts.
        root: Where states are kept.
    """

    def __init__(
        self, loaded: LoadedModel, renderer: ChatRenderer, *, fast: Open, root: Path
    ) -> None:
        self._loaded = loaded
        self._renderer = renderer
        self._fast = fast
        self._root = root
        self._tentative = TentativeReads(loaded, renderer)

    def values_of(self, read: TentativeRead, chats: Sequence[Chat]) -> Array:
        """Return the states [chat, layer, d_model] of a read, float32.

        Raises:
            ConfigError: The model has no such layer.
            DataError: A chat cannot be rendered, or is longer than the context with what follows; a
                state is not finite; a shard is damaged.
        """
        folder = self.path(read)
        by_key = {chat.sha256: chat for chat in chats}
        known = _known(folder, by_key)
        missing = [key for key in by_key if key not in known]
        for start in range(0, len(missing), CHATS_A_SHARD):
            keys = missing[start : start + CHATS_A_SHARD]
            states = self._made(read, [by_key[key] for key in keys])
            _write(folder, keys, states)
            known.update(zip(keys, states, strict=True))
        if not chats:
            return self._tentative.values_of(read, ())
        return np.stack([known[chat.sha256] for chat in chats])

    def path(self, read: TentativeRead) -> Path:
        """Return the folder of a model and read."""
        depends_on = {
            "version": TENTATIVE_VERSION,
            "model_id": self._loaded.model_id.as_dict(),
            **read.as_dict(),
        }
        text = json.dumps(depends_on, sort_keys=True)
        return self._root / hashlib.sha256(text.encode()).hexdigest()[:20]

    def _made(self, read: TentativeRead, chats: Sequence[Chat]) -> Array:
        if not isinstance(read, AppendedTokens):
            states = self._tentative.values_of(read, chats)
            return Readings({read: states}).pooled(read)
        prompts = [
            self._renderer.with_reply(self._renderer.render(chat), read.text) for chat in chats
        ]
        for prompt in prompts:
            require_room(self._loaded, len(prompt))
        return whole(self._fast([read.spec], prompts).read(prompts)).pooled(read.spec)


def _known(folder: Path, wanted: Mapping[str, Chat]) -> dict[str, Array]:
    """Return the states [layer, d_model] of the chats that are on disk, by key."""
    known: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            arrays = from_bytes(path.read_bytes())
            keys = [key.tobytes().hex() for key in arrays["chats"]]
            found = zip(keys, arrays["states"], strict=True)
            known.update((key, states) for key, states in found if key in wanted)
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it and run again") from error
    return known


def _write(folder: Path, keys: Sequence[str], states: Array) -> None:
    """Write a shard whole or not at all; its name is that of what it holds."""
    chats = np.stack([np.frombuffer(bytes.fromhex(key), np.uint8) for key in keys])
    name = hashlib.sha256(chats.tobytes()).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial"
    try:
        write_synced(partial, to_bytes({"chats": chats, "states": states}))
        partial.rename(folder / f"{name}.safetensors")
    finally:
        partial.unlink(missing_ok=True)
