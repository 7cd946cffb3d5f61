"""The share of replies with an outcome, and the name that its labeller allows."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class OutcomeRate:
    """A share of replies; what is unclear never counts as the outcome, and stands beside it."""

    name: str
    """Follows from how far the labeller agrees with people: see `core.validation.rate_name`."""
    rate: float | None
    """0 to 1; None of no replies."""
    interval: tuple[float, float] | None
    """95%, Wilson's over groups."""
    highest: float | None
    """The rate if every unclear reply had the outcome."""
    unclear: float | None
    """Share of replies that are neither: empty, collapsed, or not understood by the labeller."""
    num_replies: int

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return asdict(self)
