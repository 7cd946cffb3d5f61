"""Reads: what a detector wants to see of a prompt.

A read is plain data that an engine (or the guard) carries out. Layers are 0-based decoder blocks
and -1 is the last one; a block's state is its output, before the final norm. Positions are
absolute in the unpadded prompt, so that padding never matters.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from demur.core.errors import ConfigError

Positions = Literal["last", "user", "users", "all", "reply"]
Site = Literal["block_out", "final_norm", "attn_out", "mlp_out"]
Normalise = Literal["none", "rms"]
Pool = Literal["none", "mean", "max"]
Among = Literal["vocabulary", "labels"]

SELF = "self"
"""As the model of an `OwnPass`: the one that is served."""


@dataclass(frozen=True)
class CaptureSpec:
    """Activations of the prefill.

    The values of a read with one vector a layer (`is_pooled`) are [prompt, layer, d_model];
    of any other, one array [layer, position, d_model] a prompt.
    """

    layers: tuple[int, ...]
    """0-based decoder blocks; negative ones count from the end."""
    positions: Positions | tuple[int, ...] = "last"
    """`last`: the last token, generation prompt included; `user`: the content of the last user
    turn; `users`: of all user turns; `all`; `reply`: the tokens of the reply after the prompt; or
    numbers, where negative ones count from the end."""
    site: Site = "block_out"
    """`final_norm` has one layer only, and `layers` must be (-1,)."""
    normalise: Normalise = "none"
    """`rms` divides each token's state by its root mean square, before pooling."""
    pool: Pool = "none"
    """Over positions, while capturing: only [layer, d_model] leaves the model."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if not self.layers:
            raise ConfigError("a read names no layers: give at least one, such as (-1,)")
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"a read names a layer twice: {self.layers}")
        for field, value, choices in (
            ("site", self.site, get_args(Site)),
            ("normalise", self.normalise, get_args(Normalise)),
            ("pool", self.pool, get_args(Pool)),
        ):
            if value not in choices:
                raise ConfigError(f"{field} is {value!r}: expected one of {choices}")
        if isinstance(self.positions, str) and self.positions not in get_args(Positions):
            raise ConfigError(
                f"positions is {self.positions!r}: expected one of {get_args(Positions)} or numbers"
            )
        if self.site == "final_norm" and self.layers != (-1,):
            raise ConfigError(f"final_norm has layers {self.layers}: expected (-1,)")

    @property
    def is_pooled(self) -> bool:
        """True if the values hold one vector a layer and prompt."""
        return self.positions == "last" or self.pool != "none"

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Texts:
    """The text of the last user turn; the values are one string a prompt."""

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return {"texts": "last_user"}


@dataclass(frozen=True)
class OwnPass:
    """How likely a model finds each of a few answers to a question about the chat.

    This is no part of the prefill: it costs a forward pass over a prompt of its own, which is run
    only when a detector asks for the values. They are log-probabilities [prompt, label].
    """

    model: str
    """`self` for the served model, or the folder or name of another one."""
    template: str
    """What makes a prompt of the chat: see `core.templates`."""
    labels: tuple[tuple[str, ...], ...]
    """For each label the answers that mean it. What all answers begin with counts as said; a label
    is as likely as the next tokens of its answers together. For a classifier, the names of its
    classes, and an empty label for all other classes."""
    normalise: Among = "vocabulary"
    """What the probabilities of sum to one: all next tokens, or the labels alone."""

    def __post_init__(self) -> None:
        """Refuse what no pass could answer."""
        if self.normalise not in get_args(Among):
            raise ConfigError(f"normalise is {self.normalise!r}: expected one of {get_args(Among)}")
        texts = [text for label in self.labels for text in label]
        if len(self.labels) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"labels is {self.labels!r}: expected two or more tuples of texts")
        if len(set(texts)) < len(texts) or sum(not label for label in self.labels) > 1:
            raise ConfigError(f"labels is {self.labels!r}: two labels or texts are the same")

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return {"own_pass": asdict(self)}


@dataclass(frozen=True)
class AppendedTokens:
    """The state at the end of a text that the model reads after the prompt, as if it had said it.

    Values are [prompt, layer, d_model]. The text is read on a fork of the prefill's cache, and only
    when a detector asks for the values.
    """

    text: str
    """Split into tokens by itself; not empty."""
    layers: tuple[int, ...]
    """0-based decoder blocks; negative ones count from the end."""
    site: Site = "block_out"
    """As of a `CaptureSpec`."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if not self.text:
            raise ConfigError("the appended text is empty: give a word, such as 'Sure'")
        _ = self.spec

    @property
    def spec(self) -> CaptureSpec:
        """What is read at the last token."""
        return CaptureSpec(self.layers, site=self.site)

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return {"appended_tokens": asdict(self)}


@dataclass(frozen=True)
class PilotTokens:
    """The state after the first tokens of the greedy reply, which nobody is shown.

    Values are [prompt, layer, d_model], at the last of these tokens, or where the reply ends. They
    are drawn on a fork of the prefill's cache, and only when a detector asks for the values.
    """

    num_tokens: int
    """1 or more."""
    layers: tuple[int, ...]
    """0-based decoder blocks; negative ones count from the end."""
    site: Site = "block_out"
    """As of a `CaptureSpec`."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if self.num_tokens < 1:
            raise ConfigError(f"num_tokens is {self.num_tokens}: expected 1 or more")
        _ = self.spec

    @property
    def spec(self) -> CaptureSpec:
        """What is read at the last token."""
        return CaptureSpec(self.layers, site=self.site)

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return {"pilot_tokens": asdict(self)}


@dataclass(frozen=True)
class Checkpoint:
    """The states that go into a block, stored by the engine while it reads a prompt.

    No detector sees them: an intervention that changes nothing below the block goes on from there.
    """

    layer: int
    """0-based decoder block, over 0."""

    def __post_init__(self) -> None:
        """Refuse what no engine could carry out."""
        if self.layer < 1:
            raise ConfigError(f"a checkpoint is at layer {self.layer}: expected 1 or more")


TentativeRead = AppendedTokens | PilotTokens
"""What is read in steps on a fork of the prefill's cache."""
ExtraRead = OwnPass | TentativeRead
"""What costs more than the prefill, and is read only when it is asked for."""
Read = CaptureSpec | Texts | ExtraRead


def in_prefill(reads: Iterable[Read]) -> tuple[CaptureSpec | Texts, ...]:
    """Return the reads that cost no more than the prefill."""
    return tuple(read for read in reads if isinstance(read, CaptureSpec | Texts))


def of_reply(reads: Iterable[Read]) -> tuple[CaptureSpec, ...]:
    """Return reads of a prompt's tokens as reads of its reply's.

    What is read of a prompt at its last token alone is the mean over the reply's tokens: a reply is
    judged after each of them, and the last one of the text so far can be any word. A mean over the
    user's tokens that is read of the same layers beside it would be the same once more: it goes.

    Raises:
        ConfigError: A read is no capture, or its positions are numbers.

    >>> of_reply([CaptureSpec((4,), positions="all")])
    (CaptureSpec(layers=(4,), positions='reply', site='block_out', normalise='none', pool='none'),)
    """
    every = tuple(reads)
    at_last = {read.layers for read in every if _is_capture_at(read, "last")}
    return tuple(
        _of_reply(read)
        for read in every
        if not (_is_capture_at(read, "user") and read.pool == "mean" and read.layers in at_last)
    )


def _is_capture_at(read: Read, positions: str) -> TypeGuard[CaptureSpec]:
    return isinstance(read, CaptureSpec) and read.positions == positions


def _of_reply(read: Read) -> CaptureSpec:
    if not isinstance(read, CaptureSpec) or isinstance(read.positions, tuple):
        raise ConfigError(f"{read} cannot be read of a reply: expected a capture by a name")
    pool = "mean" if read.positions == "last" else read.pool
    return replace(read, positions="reply", pool=pool)


def by_token(reads: Iterable[Read]) -> tuple[CaptureSpec, ...]:
    """Return reads of a reply without their pooling: a state a token, as decoding yields them.

    Raises:
        ConfigError: A read is no capture, or its positions are numbers.

    >>> by_token([CaptureSpec((4,), positions="reply", pool="mean")])
    (CaptureSpec(layers=(4,), positions='reply', site='block_out', normalise='none', pool='none'),)
    """
    return tuple(replace(_of_reply(read), pool="none") for read in reads)


def spread_layers(num_blocks: int, *, start: float, count: int) -> tuple[int, ...]:
    """Return layers spread evenly over the later part of a model, its last block included.

    Args:
        num_blocks: Of the model.
        start: Share of the depth at which to begin, 0 to 1.
        count: How many, or all there are.

    >>> spread_layers(30, start=1 / 3, count=10)
    (10, 12, 14, 16, 18, 20, 22, 24, 26, 29)
    """
    first, last = min(round(start * num_blocks), num_blocks - 1), num_blocks - 1
    steps = max(1, count - 1)
    return tuple(sorted({first + (last - first) * step // steps for step in range(steps + 1)}))


def middle_layer(num_blocks: int) -> tuple[int, ...]:
    """Return the layer after half of the depth, where a single layer tells most of a prompt.

    >>> middle_layer(30)
    (16,)
    """
    return (min(num_blocks // 2 + 1, num_blocks - 1),)


def read_from_dict(fields: dict[str, object]) -> Read:
    """Return the read that `as_dict` wrote.

    Raises:
        ConfigError: The fields are not those of a read.
    """
    if "texts" in fields:
        return Texts()
    if "own_pass" in fields:
        return _own_pass_from(fields["own_pass"])
    if "appended_tokens" in fields:
        return _made(AppendedTokens, fields["appended_tokens"])
    if "pilot_tokens" in fields:
        return _made(PilotTokens, fields["pilot_tokens"])
    return _made(CaptureSpec, fields)


Plain = TypeVar("Plain", CaptureSpec, AppendedTokens, PilotTokens)


def _made(kind: type[Plain], fields: Any) -> Plain:
    try:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return kind(**plain)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"not a read: {fields!r} ({error})") from error


def _own_pass_from(fields: Any) -> OwnPass:
    try:
        labels = tuple(tuple(label) for label in fields["labels"])
        return OwnPass(**{**fields, "labels": labels})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a pass of its own: {fields!r} ({error})") from error
