"""Asks another model that was trained to guard: a second model and a second pass a prompt.

Llama Guard (1 to 4, texts only), WildGuard, ShieldGemma, Qwen3Guard (Gen), Granite Guardian, and
any sequence classifier. The verdict is read from the logits of the one token that decides, so that
there is a score to set a threshold on; nothing is generated. A guard with a chat template brings
its policy with it. ShieldGemma is asked about four policies, and the worst answer counts.

Paper: Inan et al., Llama Guard (2023), arXiv 2312.06674; Han et al., WildGuard (2024), arXiv
2406.18495; Zeng et al., ShieldGemma (2024), arXiv 2407.21772; Padhi et al., Granite Guardian
(2024), arXiv 2412.07724; Zhao et al., Qwen3Guard Technical Report (2025), arXiv 2510.14276.

Differs: log-odds of the first telling token in place of a generated verdict, scaled on a few
training prompts; system and tool turns are left out. Categories are not read.
"""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from demur.core.errors import ConfigError
from demur.core.reads import OwnPass
from demur.core.templates import Template, family, templates
from demur.detectors._own_pass import OwnPassDetector

__all__ = ["GuardModel"]

AUTO, CLASSIFIER = "auto", "classifier"
NO_GUARDS = ("question", "exchange")
"""Kinds of templates that ask a chat model, or about a reply."""
MODEL_NAMES = {
    "llama-?guard": "llama_guard",
    "wild-?guard": "wildguard",
    "shield-?gemma": "shieldgemma",
    "qwen3-?guard-?gen": "qwen3guard",
    "granite-?guardian-?3.3": "granite_guardian_3_3",
    "granite-?guardian-?3.[012]": "granite_guardian",
}
"""Formats by what the names of published models hold, with any sign for a dot."""
Controversial = Literal["unsafe", "safe", "neither"]


@dataclass
class GuardModel(OwnPassDetector):
    """The log-odds that a guard model calls the prompt unsafe.

    Args:
        reads: They follow from the fields, and are set by them.
    """

    model: str = "Qwen/Qwen3Guard-Gen-0.6B"
    """A folder, a `.gguf` file or a name on the model hub; `self` if a guard model is served."""
    format: str = AUTO
    """How it is asked: `llama_guard`, `wildguard`, `shieldgemma`, `qwen3guard`, `granite_guardian`
    (3.0 to 3.2), `granite_guardian_3_3` or `classifier`; `auto` goes by the model's own name."""
    controversial: Controversial = "unsafe"
    """What Qwen3Guard's middle verdict counts as: `unsafe` is its strict mode, `safe` its loose."""
    unsafe_classes: tuple[str, ...] = ()
    """Of a classifier, by the names in its configuration; all others are safe."""

    def __post_init__(self) -> None:
        """Refuse what no guard is asked with; a list, as JSON has it, becomes a tuple."""
        super().__post_init__()
        if self.format == AUTO:
            self.format = CLASSIFIER if self.unsafe_classes else format_of(self.model)
        asked = family(self.format)
        if not asked or asked[0].kind in NO_GUARDS:
            raise ConfigError(f"format is {self.format!r}: expected one of {formats()}")
        if self.controversial not in get_args(Controversial):
            raise ConfigError(
                f"controversial is {self.controversial!r}: expected one of "
                f"{get_args(Controversial)}"
            )
        if isinstance(self.unsafe_classes, str):
            raise ConfigError(f"unsafe_classes is {self.unsafe_classes!r}: expected a list")
        self.unsafe_classes = tuple(self.unsafe_classes)
        if (self.format == CLASSIFIER) != bool(self.unsafe_classes):
            raise ConfigError(
                f"format is {self.format!r} and unsafe_classes {self.unsafe_classes!r}: a "
                "classifier needs the names of its unsafe classes, and nothing else has any"
            )
        self.reads = tuple(OwnPass(self.model, t.name, self._labels(t)) for t in asked)

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[OwnPass, ...]:
        """Return the pass of the default model; the method reads no layer of the served one."""
        return tuple(read for read in cls(()).reads if isinstance(read, OwnPass))

    def _labels(self, template: Template) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if template.kind == CLASSIFIER:
            return self.unsafe_classes, ()
        middle = template.labels.get("controversial", ())
        unsafe, safe = template.labels["unsafe"], template.labels["safe"]
        if self.controversial == "unsafe":
            return (*unsafe, *middle), safe
        return unsafe, (*safe, *middle) if self.controversial == "safe" else safe


def format_of(model: str) -> str:
    """Return the format of a published guard model, by its folder's or file's own name.

    Raises:
        ConfigError: The name is none of theirs.

    >>> format_of("google/shieldgemma-2b")
    'shieldgemma'
    """
    name = PurePath(model).name.lower().replace("_", "-")
    for pattern, format_ in MODEL_NAMES.items():
        if re.search(pattern, name):
            return format_
    raise ConfigError(
        f"how model {name!r} is asked cannot be told from its name: give format, one of "
        f"{formats()}; a classifier needs unsafe_classes too"
    )


def formats() -> tuple[str, ...]:
    """Return the formats that are known."""
    asked = [name for name, template in templates().items() if template.kind not in NO_GUARDS]
    return tuple(dict.fromkeys(name.split(":")[0] for name in asked))
