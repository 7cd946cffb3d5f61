"""Reads: what a detector wants to see of a prompt.

A read is plain data that an engine (or the guard) carries out. Layers are 0-based decoder blocks
and -1 is the last one; a block's state is its output, before the final norm. Positions are
absolute in the unpadded prompt, so that padding never matters.
"""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from demur.core.errors import ConfigError

Positions = Literal["last", "user", "users", "all"]
Site = Literal["block_out", "final_norm", "attn_out", "mlp_out"]
Normalise = Literal["none", "rms"]
Pool = Literal["none", "mean", "max"]


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
    turn; `users`: of all user turns; `all`; or numbers, where negative ones count from the end."""
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


Read = CaptureSpec | Texts


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
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return CaptureSpec(**plain)  # type: ignore[arg-type]  # __post_init__ checks the values
    except TypeError as error:
        raise ConfigError(f"not a read: {fields!r} ({error})") from error
