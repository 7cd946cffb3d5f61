"""Makes plain text of a reply: no markdown, straight apostrophes, lower case, one space."""

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\u00b4`\uff07\u201b", "'"))
_QUOTES = str.maketrans(dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\uff02", '"'))
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_EMPHASIS = re.compile(r"[*_~]+")
_MARKUP = re.compile(r"</?[a-z][^>]{0,40}>|\[/?inst\]|[#>|]+")
_LINK = re.compile(r"\[([^\]]{1,200})\]\([^)]{0,300}\)")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f]")
_SPACE = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\s*\n\s*")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？।؟])\s*|\n+")


def plain(reply: str) -> str:
    """Return the plain text of a reply; lines are kept.

    >>> plain("**I\u2019m sorry**,  but no.")
    "i'm sorry, but no."
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", reply))
    text = text.translate(_APOSTROPHES).translate(_QUOTES).lower()
    text = _LINK.sub(r"\1", _FENCE.sub(" ", text))
    text = _SPACE.sub(" ", _MARKUP.sub(" ", _EMPHASIS.sub("", text)))
    return _LINES.sub("\n", text).strip(" \n\"'")


def sentences(text: str) -> list[str]:
    r"""Return the sentences of a plain text, or its lines where it has no full stops.

    >>> sentences("no. i won't!\nsorry")
    ['no.', "i won't!", 'sorry']
    """
    return [part.strip() for part in _SENTENCE_ENDS.split(text) if part and part.strip()]
