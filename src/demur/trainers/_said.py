"""Turns examples into prompts and replies as token ids, once, before rows are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from demur.core.errors import DataError
from demur.core.examples import Example, require_labels
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.trainers._refusals import ShippedRefusals, harmful_reply_of, safe_reply_of
from demur.trainers._rows import Said, Words


@dataclass(frozen=True)
class Limits:
    """How long prompts and replies may be."""

    max_prompt_tokens: int
    """A prompt with more, the template's counted, is left out."""
    max_reply_tokens: int
    """A longer reply is cut, and then has no end token."""


@dataclass
class Corpus:
    """The examples that can be trained on, with their replies."""

    said: list[Said] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    """Of each; no group is both trained on and held out."""
    num_too_long: int = 0
    """Examples that were left out, since their prompt is too long."""


def read_corpus(
    loaded: LoadedModel, examples: Sequence[Example], *, limits: Limits, seed: int
) -> Corpus:
    """Split prompts and replies into tokens.

    Args:
        loaded: Its template renders the prompts.
        examples: Labelled. An unsafe prompt without a reply of its own is refused in one of the
            words that ship.
        limits: Of their lengths.
        seed: Of which refusal goes to which prompt.

    Raises:
        DataError: A prompt has no label, cannot be rendered, or fills the context; or an example
            says that a safe prompt has a harmful reply.
    """
    require_labels(examples)
    renderer, corpus = ChatRenderer.of(loaded), Corpus()
    shipped = ShippedRefusals(seed=seed)
    for example in examples:
        if example.label == "safe" and example.harmful_response is not None:
            raise DataError(
                f"example {example.id!r} is labelled safe and has a harmful_response: correct the "
                "label, or call the reply rejected"
            )
        prompt = renderer.render(example.chat).token_ids
        if len(prompt) > limits.max_prompt_tokens:
            corpus.num_too_long += 1
            continue
        if len(prompt) + limits.max_reply_tokens + 1 > loaded.max_tokens:
            raise DataError(
                f"prompt {example.id!r} has {len(prompt)} tokens, and a reply may have "
                f"{limits.max_reply_tokens}: the model takes at most {loaded.max_tokens}; lower "
                "max_prompt_tokens or max_reply_tokens"
            )
        corpus.said.append(_said(loaded, example, prompt, shipped.next(example), limits))
        corpus.groups.append(example.group_key)
    return corpus


def _said(
    loaded: LoadedModel, example: Example, prompt: tuple[int, ...], refusal: str, limits: Limits
) -> Said:
    is_unsafe, max_tokens = example.label == "unsafe", limits.max_reply_tokens
    safe = safe_reply_of(example) or (refusal if is_unsafe else None)
    harmful = harmful_reply_of(example)
    rejected = example.rejected or harmful or (None if is_unsafe else refusal)

    def ended(text: str | None) -> tuple[int, ...]:
        return () if text is None else tuple(loaded.ended_reply(text, max_tokens=max_tokens))

    def unended(text: str) -> tuple[int, ...]:
        return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens])

    return Said(
        prompt,
        is_unsafe,
        safe=ended(safe),
        within=ended(after_blank(safe)) if safe is not None else (),
        harmful=() if harmful is None else unended(harmful),
        rejected=ended(rejected),
    )


def words_of(loaded: LoadedModel, text: str) -> Words:
    """Return the first tokens of a text, at the start of a reply and within one.

    Raises:
        DataError: The text has no tokens.
    """
    found = [
        loaded.tokenizer(form, add_special_tokens=False)["input_ids"]
        for form in (text.strip(), after_blank(text.strip()))
    ]
    if not all(found):
        raise DataError(f"the tokenizer finds no token in {text!r}: name another word of refusal")
    return Words(found[0][0], found[1][0])


def after_blank(text: str) -> str:
    """Return a text as it stands within another one: after a blank where its script has blanks.

    >>> after_blank("Sorry"), after_blank("对不起")
    (' Sorry', '对不起')
    """
    return f" {text.lstrip()}" if text.lstrip()[:1] < "\u0e00" else text
