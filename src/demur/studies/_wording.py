"""Puts prompts inside a question that asks the model whether they are unsafe."""

from collections.abc import Sequence
from dataclasses import replace

from demur.core.examples import Example
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.core.templates import find
from demur.studies._study import StudyInputs


def inside_wording(inputs: StudyInputs, wording: int) -> StudyInputs:
    """Return inputs that read the model's question about a chat in place of the chat.

    Args:
        inputs: Of a study.
        wording: Of the detector `prompted`, 0 to 9.

    Raises:
        ConfigError: There is no such wording.
    """
    template = find(f"prompted:{wording}")

    def reader(examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
        return inputs.read([replace(e, chat=template.wrapped(e.chat)) for e in examples], reads)

    return replace(inputs, read=reader)
