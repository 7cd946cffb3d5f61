"""The replies of the pretend model: its words, their ids, and a reply that is being drawn."""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from demur.core.protocols import Done, Request
from demur.core.types import Prompt, Sampling

MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
END = MARKERS.index("<|end|>")
AT_MARKERS = re.compile("(" + "|".join(map(re.escape, MARKERS)) + ")")
_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


@dataclass
class FakeReply:
    """A request that is being answered."""

    request: Request
    prompt: Prompt
    """As it is answered."""
    script: Sequence[str]
    """The words of the whole reply."""
    token_ids: list[int] = field(default_factory=list)
    """Of the reply so far."""
    end: Done | None = None
    """What is said once the monitor has seen the last token."""
    num_drawn: int = 0
    is_stopped: bool = False
    text: str = ""
    num_shown: int = 0
    """Characters of the text that were handed out."""
    generator: np.random.Generator = field(init=False)

    @property
    def length(self) -> int:
        """Tokens of prompt and reply so far."""
        return len(self.prompt) + len(self.token_ids)

    @property
    def sampling(self) -> Sampling:
        """How the reply is drawn."""
        return self.request.sampling

    def __post_init__(self) -> None:
        """Give the row its own generator."""
        of = self.request
        self.generator = np.random.default_rng(
            zlib.crc32(f"{self.sampling.seed}:{of.draw_id or of.id}".encode())
        )

    def draw(self) -> tuple[int, str, float]:
        """Return the next token with its text and log-probability."""
        step, size = self.num_drawn, len(self.script)
        self.num_drawn += 1
        if step >= size:
            self.token_ids.append(END)
            return END, "", 0.0
        if self.sampling.temperature > 0:
            step += int(self.generator.integers(math.ceil(self.sampling.top_p * size)))
        word = self.script[step % size]
        self.token_ids.append(token_id_of(word))
        return self.token_ids[-1], word, -math.log(size)

    def show(self, word: str, *, is_last: bool) -> str:
        """Add a word to the text and return what may be shown: nothing that may begin a stop."""
        self.text += word
        found = [at for at in map(self.text.find, self.sampling.stop) if at >= 0]
        self.is_stopped = bool(found)
        held_back = 0 if is_last else max(map(len, self.sampling.stop), default=1) - 1
        end = min(found, default=len(self.text) - held_back)
        shown = self.text[self.num_shown : max(end, self.num_shown)]
        self.num_shown += len(shown)
        return shown


def words_of(text: str) -> list[str]:
    """Split a text into words with the space before them, and markers; joined they are the text."""
    pieces = AT_MARKERS.split(text)
    return [
        word
        for piece in pieces
        for word in ([piece] if piece in MARKERS else _WORDS.findall(piece))
    ]


def token_id_of(word: str) -> int:
    return MARKERS.index(word) if word in MARKERS else len(MARKERS) + zlib.crc32(word.encode())
