"""Interventions: the closed list of what can be done to a flagged request.

They are data. A responder makes one, the guard passes it on, and only engines carry it out.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from demur.core.adapters import AdapterRef
from demur.core.errors import ConfigError
from demur.core.reads import CaptureSpec, Checkpoint
from demur.core.tensors import TensorRef
from demur.core.types import Prompt

FromPosition = Literal["last", "user_end"]
CacheUse = Literal["keep", "recompute"]


def first_position(prompt: Prompt, start: FromPosition) -> int:
    """Return the last position of a prompt, or of its last user turn where there is one."""
    if start == "user_end" and (turns := prompt.spans_of("user")):
        return turns[-1].stop - 1
    return len(prompt) - 1


class Kept(NamedTuple):
    """How much of a prefill survives: the blocks below one, and the positions before one."""

    blocks_below: int | None
    """None: all blocks."""
    positions_before: int


@dataclass(frozen=True)
class ReplyWith:
    """Answer with a text; the model draws nothing."""

    text: str

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: nothing is computed again."""
        return Kept(None, len(prompt))


@dataclass(frozen=True)
class PrependText:
    """Render the chat again with a safety prompt, and answer that.

    The text is appended to an existing system message, or becomes one; where the template knows
    no system role, it is put before the first user turn.
    """

    text: str

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep nothing.

        The system turn is at the very start, so the shared prefix is a few marker tokens, and a
        prefill in two pieces rounds differently from the whole one in bfloat16.
        """
        return Kept(None, 0)


@dataclass(frozen=True)
class EndReply:
    """End the reply where it stands; before its first token there is none."""

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: nothing is computed again."""
        return Kept(None, len(prompt))


@dataclass(frozen=True)
class AddVectors:
    """Add a vector to the hidden states after some blocks, from a position on and in the reply.

    state += scale * vector, or scale * (gate . state) * vector where there are gates.
    """

    layers: tuple[int, ...]
    """0-based decoder blocks; negative ones count from the end."""
    vectors: TensorRef
    """[layer, d_model], in the order of `layers`."""
    scale: float = 1.0
    """Of all vectors; 0 changes nothing."""
    from_position: FromPosition = "last"
    """The first token that is changed: the prompt's last one, or the last one of the user's."""
    gates: TensorRef | None = None
    """[layer, d_model]: how much of a vector a state gets. With gates in the null space of benign
    states these get nothing."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"layers is {self.layers}: expected one or more, each once")
        if self.from_position not in get_args(FromPosition):
            raise ConfigError(
                f"from_position is {self.from_position!r}: expected one of {get_args(FromPosition)}"
            )

    def first_position(self, prompt: Prompt) -> int:
        """Return the first position of a prompt whose states are changed."""
        return first_position(prompt, self.from_position)

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep the positions before the first that is changed, which is read again."""
        return Kept(None, len(prompt) if self.scale == 0 else self.first_position(prompt))


@dataclass(frozen=True)
class SwapHead:
    """Draw the reply through another output matrix; the states stay as they are."""

    weights: TensorRef
    """[vocabulary, d_model], in place of the LM head's."""

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: the first token comes from the prefill's last state."""
        return Kept(None, len(prompt))


@dataclass(frozen=True)
class PrependEmbeddings:
    """Read the chat again, with trained embeddings in place of a safety prompt's tokens."""

    text: str
    """The safety prompt that they stand for: says where they go, as in `PrependText`."""
    embeddings: TensorRef
    """[token, d_model], one for each token of the text."""

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep nothing: the system turn is at the very start."""
        return Kept(None, 0)


@dataclass(frozen=True)
class Draft:
    """A small network that guesses the state after a token, in place of a pass of the model."""

    tensors: tuple[TensorRef, ...]
    """All of it, by the names that `modeling.draft` gives its parts."""


@dataclass(frozen=True)
class RerankTokens:
    """Draw each token among the likeliest ones by the state that the model would be in after it.

    The token is the argmax of lm_weight * logprob + sign * (weights . state).
    """

    top_k: int
    """How many tokens are tried in each step; 1 is greedy decoding."""
    read: CaptureSpec
    """One layer, of the token's own state."""
    weights: TensorRef
    """[d_model]."""
    sign: Literal[-1, 1] = 1
    """1 prefers states of a high score."""
    lm_weight: float = 0.0
    """Of the token's log-probability."""
    draft: Draft | None = None
    """Guesses the states that are scored; the model reads the chosen token alone. None: the model
    reads all that are tried."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}: expected 1 or more")
        if len(self.read.layers) != 1 or self.read.positions != "last":
            raise ConfigError(f"{self.read}: expected one layer, at the last token")
        if self.sign not in (-1, 1):
            raise ConfigError(f"sign is {self.sign}: expected -1 or 1")

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: the first token is chosen among those that the prefill finds likeliest."""
        return Kept(None, len(prompt))


@dataclass(frozen=True)
class UseAdapter:
    """Go on under a LoRA adapter: low-rank additions to linear maps; the weights stay as they are.

    Before the first token the prompt is read again under it, from the first adapted block on where
    that block's input was stored. A reply that is under way goes on from the tokens that it has.
    """

    adapter: AdapterRef
    scale: float = 1.0
    """Of what the adapter adds; 1 as it was trained, 0 changes nothing."""
    cache: CacheUse = "recompute"
    """Of a reply that is under way. `recompute`: prompt and reply are read again. `keep`: they stay
    as the model read them, but for the newest token, which is read again; adapters stop much less
    so."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if not math.isfinite(self.scale):
            raise ConfigError(f"scale is {self.scale}: expected a finite number")
        if self.cache not in get_args(CacheUse):
            raise ConfigError(f"cache is {self.cache!r}: expected one of {get_args(CacheUse)}")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What has to be stored of a prefill, so that it need not be computed from its start."""
        has_blocks_below = self.adapter.first_layer > 0
        return Checkpoint(self.adapter.first_layer) if has_blocks_below and self.scale else None

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep the blocks below the first adapted one, if its input was stored; else nothing."""
        if self.scale == 0:
            return Kept(None, len(prompt))
        return Kept(self.adapter.first_layer, 0)


Intervention = (
    ReplyWith
    | PrependText
    | EndReply
    | AddVectors
    | SwapHead
    | PrependEmbeddings
    | RerankTokens
    | UseAdapter
)
MidReply = ReplyWith | EndReply | UseAdapter
"""What can be done to a reply that is under way."""
