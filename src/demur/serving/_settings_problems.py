"""Says what is wrong with settings: where it stands, what it is, what was expected; one line each.

Values of secrets are never repeated.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Key = tuple[str, ...]
"""A field's name, with that of its table before it."""

PREFIX, BETWEEN = "DEMUR_SERVE_", "__"
"""Of the environment's variables."""

EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "path_type": "a path",
    "literal_error": "{expected}",
    "tuple_type": 'a list such as ["a", "b"]',
    "too_short": "at least {min_length} of them",
    "model_type": "a table",
    "value_error": "{error}",
}
"""What was expected, by pydantic's kind of error."""


@dataclass(frozen=True)
class Layer:
    """One source of settings: a file, the environment, or the caller's options."""

    place: str
    """What stands before its keys in messages."""
    values: Mapping[str, Any]
    """Nested as in the file."""
    is_environment: bool = False

    def spell(self, key: Key) -> str:
        """Return a key as users write it here."""
        return PREFIX + BETWEEN.join(key).upper() if self.is_environment else ".".join(key)

    def holds(self, key: Key) -> bool:
        """Tell whether a key is given here."""
        values: Any = self.values
        for name in key:
            if not isinstance(values, Mapping) or name not in values:
                return False
            values = values[name]
        return True

    def unknown(self, model: type[BaseModel], more: Sequence[Key] = ()) -> Iterator[str]:
        """Yield a line for each key that the settings do not have.

        Args:
            model: The settings.
            more: Keys that are given besides those of the values.
        """
        fields = {key for key, _ in fields_of(model)}
        tables = {key[:1] for key in fields if len(key) > 1}
        given = {*_keys(self.values), *more} - fields - tables
        kind = "variable" if self.is_environment else "key"
        for key in sorted(key for key in given if len(key) == 1 or key[:1] not in given):
            near = _nearest(key, fields | tables if len(key) == 1 else fields)
            hint = f"did you mean {self.spell(near)}?" if near else "demur config show lists all"
            yield f"{self.place}unknown {kind} {self.spell(key)}: {hint}"


def fields_of(model: type[BaseModel], above: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Yield the fields with their keys: of a table, what is in it."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, (*above, name))
        else:
            yield (*above, name), field


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a field's value must not be shown."""
    return _holds_secret(field.annotation)


def wrong(error: ValidationError, layers: Sequence[Layer], model: type[BaseModel]) -> list[str]:
    """Return a line for each value that cannot be.

    Args:
        error: What pydantic found.
        layers: What was merged, the strongest last.
        model: The settings.
    """
    known = dict(fields_of(model))
    lines = []
    for found in error.errors(include_url=False):
        key = tuple(part for part in found["loc"] if isinstance(part, str))
        if found["type"] == "extra_forbidden":  # `unknown` says it better
            continue
        layer = next(layer for layer in reversed(layers) if layer.holds(key))
        index = "".join(f"[{part}]" for part in found["loc"] if isinstance(part, int))
        # What a validator of ours refuses may hold a key, such as one in an address.
        is_ours = found["type"] == "value_error"
        is_hidden = is_ours or key not in known or is_secret(known[key])
        value = "" if is_hidden else f" is {found['input']!r}"
        lines.append(f"{layer.place}{layer.spell(key)}{index}{value}: {_expected(found)}")
    return lines


def _holds_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


def _keys(values: Mapping[str, Any], above: Key = ()) -> Iterator[Key]:
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, Mapping):
            yield from _keys(value, (*above, name))


def _nearest(key: Key, known: Collection[Key]) -> Key | None:
    """Return the key that was meant: of the same name in another table, or spelled alike."""
    for other in known:
        if other[-1] == key[-1]:
            return other
    by_text = {".".join(other): other for other in sorted(known)}
    alike = difflib.get_close_matches(".".join(key), by_text, 1)
    return by_text[alike[0]] if alike else None


def _expected(found: ErrorDetails) -> str:
    if found["type"] in EXPECTED:
        return "expected " + EXPECTED[found["type"]].format_map(found.get("ctx", {}))
    return found["msg"]
