"""The input contract: JSON lines, plain or gzipped, each with `text` or `messages`.

What is broken (a line that is no JSON object, invalid UTF-8, an unknown label, a repeated id) is an
error with the line's number, before any model runs. What is well formed but cannot be scored, such
as an empty text, becomes a row with an error, so that the other rows go on.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
from demur.core.types import Chat, require_unicode

LABELS: dict[object, Label] = {"unsafe": "unsafe", "safe": "safe", 1: "unsafe", 0: "safe"}
TEXT_FIELDS = (
    "group", "source", "category", "kind", "split", "language", "response", "safe_response",
    "harmful_response", "rejected",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of input: an example, or why there is none."""

    number: int
    """The line, from 1."""
    id: str
    example: Example | None
    error: str | None
    """Set if the line is well formed, but there is nothing in it to score."""


Keep = Callable[[str], bool]
"""Says by its id whether a row is wanted; of the others nothing else is looked at."""


def keep_all(row_id: str) -> bool:
    """Want every row."""
    return True


def read_rows(source: Path | BinaryIO, *, keep: Keep = keep_all) -> list[Row]:
    """Read the rows of a file or stream; blank lines are skipped.

    Args:
        source: JSON lines, plain or gzipped.
        keep: Says which rows are wanted.

    Raises:
        ConfigError: There is no such file.
        DataError: A line is broken, or an id stands twice; the message holds the line's number.
    """
    rows: list[Row] = []
    first_lines: dict[str, int] = {}
    for number, fields in read_objects(source):
        try:
            row_id = _row_id(number, fields)
            if row_id in first_lines:
                raise DataError(
                    f"id {row_id!r} stands in line {first_lines[row_id]} too; give each prompt an "
                    "id of its own"
                )
            first_lines[row_id] = number
            if keep(row_id):
                rows.append(_row(number, row_id, fields))
        except DataError as error:
            raise DataError(f"{_name(source)}, line {number}: {error}") from error
    return rows


def read_objects(source: Path | BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line that is not blank.

    Raises:
        ConfigError: There is no such file.
        DataError: A line is no JSON object; the message holds its number.
    """
    name = _name(source)
    for number, line in enumerate(_content(source, name).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(line)
        except DataError as error:
            raise DataError(f"{name}, line {number}: {error}") from error


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the input"


def _content(source: Path | BinaryIO, name: str) -> bytes:
    try:
        content = source.read_bytes() if isinstance(source, Path) else source.read()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {name}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is no whole gzip file ({error}): copy it anew") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is no valid UTF-8; convert the file to UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON ({error.msg} at character {error.pos})") from error
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"broken JSON ({error})") from error
    if not isinstance(fields, dict):
        raise DataError(f"the line holds {type(fields).__name__}: expected an object")
    return fields


def _row_id(number: int, fields: dict[str, Any]) -> str:
    given = fields.get("id")
    if given is not None and not isinstance(given, str | int):
        raise DataError(f"id is {given!r}: expected a text or a whole number")
    row_id = str(number) if given is None else str(given)
    require_unicode(row_id)
    return row_id


def _row(number: int, row_id: str, fields: dict[str, Any]) -> Row:
    texts = {field: _optional_text(fields, field) for field in TEXT_FIELDS}
    labels = {field: _label(fields, field) for field in ("label", "response_label")}
    complied = _complied(fields)
    system = _optional_text(fields, "system")
    _refuse_wrong_content(fields)
    try:
        chat = _chat(fields, system)
    except DataError as error:
        return Row(number, row_id, None, str(error))
    example = Example(row_id, chat, complied=complied, **labels, **texts)  # type: ignore[arg-type]
    return Row(number, row_id, example, None)


def _refuse_wrong_content(fields: dict[str, Any]) -> None:
    """Refuse a line without a text or messages, or with both."""
    given = [field for field in ("text", "messages") if fields.get(field) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "neither text nor messages"
        raise DataError(f"the line has {found}: give one of the two")
    if given == ["text"]:
        _optional_text(fields, "text")
    elif not isinstance(fields["messages"], list):
        raise DataError(f"messages is {type(fields['messages']).__name__}: expected a list")


def _chat(fields: dict[str, Any], system: str | None) -> Chat:
    if fields.get("text") is not None:
        return Chat.from_text(fields["text"], system=system)
    messages = fields["messages"]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return Chat.from_messages(messages)


def _optional_text(fields: dict[str, Any], field: str) -> str | None:
    value = fields.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{field} is {value!r}: expected a text")
    if value is not None and field != "text":  # a text that is none is its row's error
        require_unicode(value)
    return value


def _complied(fields: dict[str, Any]) -> bool | None:
    value = fields.get("complied")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"complied is {value!r}: expected true or false, or nothing if unknown")
    return value


def _label(fields: dict[str, Any], field: str) -> Label | None:
    value = fields.get(field)
    if value is None:
        return None
    if isinstance(value, list | dict) or value not in LABELS:
        raise DataError(f"{field} is {value!r}: expected 'unsafe' or 'safe', or 1 or 0")
    return LABELS[value]
