"""Asks the served model itself whether the prompt is unsafe: one more forward pass, no training.

The user's text is put into one of ten questions that want one word, and the probabilities of the
two answers are read from the logits of the next token; nothing is generated. How well a model does
depends much on the wording, so compare several.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1, and v2, which compares
ten wrappers: a model that is asked recognises prompts that it would nevertheless answer.

Differs: wordings of our own, since one of the ten is published; the odds of the answers instead of
a decoded digit; the assistant's header is kept at the end; a chat of several turns is asked about
as a whole.
"""

from dataclasses import dataclass

from demur.core.errors import ConfigError
from demur.core.reads import SELF, OwnPass
from demur.core.templates import family
from demur.detectors._own_pass import OwnPassDetector

__all__ = ["Prompted"]


@dataclass
class Prompted(OwnPassDetector):
    """The log-odds that the model itself calls the prompt unsafe.

    Args:
        reads: They follow from `wrapper`, and are set by it.
    """

    wrapper: int = 0
    """Which of the ten questions is asked, 0 to 9."""

    def __post_init__(self) -> None:
        """Refuse a question that there is not; the reads follow from it."""
        super().__post_init__()
        wrappers = family("prompted")
        if self.wrapper not in range(len(wrappers)):
            raise ConfigError(f"wrapper is {self.wrapper!r}: expected 0 to {len(wrappers) - 1}")
        template = wrappers[self.wrapper]
        labels = (template.labels["unsafe"], template.labels["safe"])
        self.reads = (OwnPass(SELF, template.name, labels),)

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[OwnPass, ...]:
        """Return the pass of the first question; the method reads no layer."""
        return tuple(read for read in cls(()).reads if isinstance(read, OwnPass))
