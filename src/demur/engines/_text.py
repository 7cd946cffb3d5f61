"""Turns a row's tokens into text as they come: whole characters only, and nothing after a stop."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast as Fast

from demur.core.protocols import Done, Event, TokenOut

_INCOMPLETE = "\ufffd"
_FEWEST, _MOST = 4, 16
"""Settled tokens that are decoded along with those that are not."""


class TextStream:
    """The text of one reply.

    Args:
        tokenizer: Decodes; special tokens are left out.
        stop: Texts at which the reply ends.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._decode = decoder_of(tokenizer)
        self._stop = tuple(stop)
        self._held_back = max((len(text) for text in self._stop), default=1) - 1
        self._ids: list[int] = []
        self._settled_text = ""
        self._context = 0  # the first token that is decoded along
        self._before = ""  # the text of the settled tokens from there on
        self._emitted = 0  # characters already handed out
        self.is_stopped = False
        """True once a stop text has appeared."""

    def push(self, token_id: int, *, is_last: bool = False) -> str:
        """Add a token and return what may be shown of the text since the last call.

        Args:
            token_id: The next token.
            is_last: Nothing follows, so nothing is held back.
        """
        self._ids.append(token_id)
        pending = self._pending()
        text = self._settled_text + pending
        found = [at for at in (text.find(s, self._search_from()) for s in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            return self._emit(text, min(found))
        if is_last:
            return self._emit(text, len(text))
        return self._emit(text, len(text.rstrip(_INCOMPLETE)) - self._held_back)

    def _search_from(self) -> int:
        return max(0, self._emitted - self._held_back)

    def _emit(self, text: str, end: int) -> str:
        shown = text[self._emitted : max(end, self._emitted)]
        self._emitted += len(shown)
        return shown

    def _pending(self) -> str:
        """Return the text of the tokens that are not settled yet, and settle what can be.

        A few tokens of context are decoded along, since some tokenizers drop a leading space.
        """
        whole = self._decode(self._ids[self._context :])
        pending = whole[len(self._before) :]
        if not pending or pending.endswith(_INCOMPLETE):
            return pending
        self._settled_text += pending
        self._before = whole
        if len(self._ids) - self._context > _MOST:
            self._context = len(self._ids) - _FEWEST
            self._before = self._decode(self._ids[self._context :])
        return ""


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """Return what makes a text of token ids, special tokens left out.

    The tokenizer's own method looks at every id in Python first; where it then does nothing but ask
    the Rust tokenizer, that one is asked at once, in a third of the time.
    """
    kind = type(tokenizer)
    if issubclass(kind, Fast) and (kind.decode, kind._decode) == (Fast.decode, Fast._decode):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def text_events(tokenizer: Any, request_id: str, text: str, *, first: int) -> Iterator[Event]:
    """Yield a text as the tokens of a reply, and its end.

    Args:
        tokenizer: Of the model.
        request_id: Whose reply it takes the place of.
        text: Split into tokens by itself.
        first: The position of its first token.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    for number, token_id in enumerate(ids):
        shown = stream.push(token_id, is_last=number == len(ids) - 1)
        yield TokenOut(request_id, first + number, token_id, shown, 0.0)
    yield Done(request_id, "replaced")
