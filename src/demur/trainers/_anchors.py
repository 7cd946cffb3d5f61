"""Picks anchors: as many unsafe as safe prompts, in pairs of like shape.

If unsafe prompts are imperatives and safe ones questions, the difference of their states is one of
style. So each unsafe anchor gets a safe one of the same form and first word, and of about its
length; and a group gives one anchor at most, so that no request stands on both sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from demur.core.errors import DataError
from demur.core.examples import Example, targets_of
from demur.core.readings import Array
from demur.core.types import Chat, Prompt
from demur.modeling.chat import ChatRenderer

MAX_CANDIDATES = 4000
"""Safe prompts that anchors are chosen among."""
OTHER_WORD, OTHER_FORM = 0.5, 1.0
"""What a pair costs for another first word, and for each trait of the form that differs; a length
that differs costs the logarithm of the ratio."""


@dataclass(frozen=True)
class Anchors:
    """Rendered prompts; those at the same place are a pair."""

    unsafe: tuple[Prompt, ...]
    safe: tuple[Prompt, ...]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.unsafe)

    def length_gap(self) -> float:
        """Return by how much the lengths of a pair differ on average, of the longer one's."""
        lengths = [
            sorted((_length(unsafe), _length(safe)))
            for unsafe, safe in zip(self.unsafe, self.safe, strict=True)
        ]
        return float(np.mean([1 - short / long for short, long in lengths]))


def pick_anchors(
    examples: Sequence[Example], renderer: ChatRenderer, *, count: int, seed: int
) -> Anchors:
    """Pick pairs of anchors; the same seed picks the same.

    Args:
        examples: Labelled prompts.
        renderer: Of the model that will read them.
        count: Pairs, 2 or more; fewer where there are fewer groups.
        seed: Of the draw.

    Raises:
        DataError: See `pick_pairs`.
    """
    unsafe, safe = pick_pairs(examples, renderer.render, count=count, seed=seed)
    return Anchors(
        *(tuple(renderer.render(example.chat) for example in of) for of in (unsafe, safe))
    )


def pick_pairs(
    examples: Sequence[Example], render: Callable[[Chat], Prompt], *, count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Pick unsafe prompts and safe ones of like shape; those at the same place are a pair.

    Args:
        examples: Labelled prompts.
        render: Makes a prompt of a chat, as the model will read it.
        count: Pairs, 2 or more; fewer where there are fewer groups.
        seed: Of the draw.

    Raises:
        DataError: A prompt has no label, or there are no two groups of each label.
    """
    targets_of(examples)
    unsafe, safe = _one_a_group(examples, seed=seed)
    if min(len(unsafe), len(safe)) < 2:
        raise DataError(
            f"there are {len(unsafe)} groups of unsafe and {len(safe)} of safe prompts: expected "
            "two of each or more"
        )
    few = unsafe[: min(count, len(safe))]
    candidates = safe[:MAX_CANDIDATES]
    rendered = [[render(example.chat) for example in of] for of in (few, candidates)]
    rows, columns = linear_sum_assignment(_costs(few, candidates, *rendered))
    return [few[row] for row in rows], [candidates[column] for column in columns]


def _one_a_group(examples: Sequence[Example], *, seed: int) -> tuple[list[Example], list[Example]]:
    """Return one unsafe or one safe example of each group, in an order that is drawn."""
    drawn: dict[str, Example] = {}
    for place in np.random.default_rng(seed).permutation(len(examples)):
        drawn.setdefault(examples[place].group_key, examples[place])
    unsafe = [example for example in drawn.values() if example.label == "unsafe"]
    return unsafe, [example for example in drawn.values() if example.label == "safe"]


def _costs(
    unsafe: Sequence[Example],
    safe: Sequence[Example],
    unsafe_prompts: Sequence[Prompt],
    safe_prompts: Sequence[Prompt],
) -> Array:
    """Return how unlike in shape each unsafe prompt is to each safe one, [unsafe, safe]."""
    lengths = [np.log([_length(p) for p in of]) for of in (unsafe_prompts, safe_prompts)]
    costs: Array = np.abs(lengths[0][:, None] - lengths[1][None])
    for number, (of_unsafe, of_safe) in enumerate(zip(_traits(unsafe), _traits(safe), strict=True)):
        differs = np.array(of_unsafe)[:, None] != np.array(of_safe)[None]
        costs += (OTHER_FORM if number else OTHER_WORD) * differs
    return costs


def _traits(examples: Sequence[Example]) -> list[list[str]]:
    """Return the first words, and then each trait of the form, of all examples."""
    texts = [example.chat.last_user_text.strip() for example in examples]
    return [
        [text.split()[0].lower() for text in texts],
        [str(example.language) for example in examples],
        [str(text.endswith(("?", "？"))) for text in texts],
        [str("\n" in text) for text in texts],
        [str(len(example.chat.messages)) for example in examples],
    ]


def _length(prompt: Prompt) -> int:
    """Return the number of the user's tokens."""
    return sum(span.stop - span.start for span in prompt.spans_of("user"))
