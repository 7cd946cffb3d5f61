"""Prompts by the part that they play when replies are compared: unsafe, look-alike, ordinary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.readings import Array

Role = Literal["unsafe", "look_alike", "ordinary"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Cases:
    """Prompts in their roles."""

    examples: tuple[Example, ...]
    role: Array
    """[prompt], words of `ROLES`."""

    def __post_init__(self) -> None:
        """Refuse what nothing can be compared on.

        Raises:
            DataError: There are no unsafe prompts, or no safe ones.
        """
        if not (self.role == "unsafe").any() or (self.role == "unsafe").all():
            raise DataError(
                f"{len(self.examples)} prompts, {int((self.role == 'unsafe').sum())} of them "
                "unsafe: replies are compared on unsafe and safe ones"
            )

    @property
    def group(self) -> Array:
        """The group of each prompt, [prompt]."""
        return np.array([example.group_key for example in self.examples])

    def rows(self, role: Role) -> Array:
        """Return the rows of a role."""
        return np.flatnonzero(self.role == role)


def role_of(example: Example) -> Role:
    """Return the part that a labelled prompt plays.

    Raises:
        DataError: It has no label.
    """
    if example.label is None:
        raise DataError(f"prompt {example.id!r} has no label: expected 'unsafe' or 'safe'")
    if example.label == "unsafe":
        return "unsafe"
    return "look_alike" if example.is_look_alike else "ordinary"


def cases_of(tests: Mapping[str, Sequence[Example]], *, most: int, seed: int = 0) -> Cases:
    """Return prompts of test sets in their roles, drawn evenly from the sets.

    Args:
        tests: By the sets' names.
        most: Of each role, over 0.
        seed: Of the draws.

    Raises:
        DataError: A prompt has no label, or those of one label are missing.
    """
    found: dict[Role, list[list[Example]]] = {role: [] for role in ROLES}
    generator = np.random.default_rng(seed)
    for examples in tests.values():
        for role in ROLES:
            of = [example for example in examples if role_of(example) == role]
            found[role].append([of[row] for row in generator.permutation(len(of))])
    chosen = [(role, example) for role in ROLES for example in _in_turns(found[role], most)]
    return Cases(
        tuple(example for _, example in chosen), np.array([role for role, _ in chosen], dtype=str)
    )


def _in_turns(queues: Sequence[list[Example]], most: int) -> list[Example]:
    """Return at most some examples, one of each queue in turn."""
    longest = max(map(len, queues), default=0)
    turns = (queue[turn] for turn in range(longest) for queue in queues if turn < len(queue))
    return [example for example, _ in zip(turns, range(most), strict=False)]
