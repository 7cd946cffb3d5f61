"""Writes settings as guard.toml, with a comment on every key, and the table of keys of its docs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from demur.serving._settings_problems import Key, fields_of
from demur.serving.settings import Settings


def as_toml(settings: Settings) -> str:
    """Return settings as a file; secrets are asterisks, which no server takes for keys.

    What is not set is a comment with an example, for there is no null in TOML.
    """
    lines: list[str] = []
    table: Key = ()
    for key, field in fields_of(Settings):
        if key[:-1] != table:
            table = key[:-1]
            about = Settings.model_fields[table[0]].description
            lines += ["", f"# {about}", f"[{table[0]}]"]
        value = _value(settings, key)
        line = f"{key[-1]} = {_toml(_example(field) if value is None else value)}"
        lines += [f"# {field.description}", f"# {line}" if value is None else line]
    return "\n".join(lines) + "\n"


def key_rows() -> Iterator[tuple[str, str, str]]:
    """Yield for each key its name, its default as TOML (empty: not set), and what it is for."""
    settings = Settings()
    for key, field in fields_of(Settings):
        value = _value(settings, key)
        yield ".".join(key), "" if value is None else _toml(value), str(field.description)


def _example(field: FieldInfo) -> Any:
    assert field.examples, "a field without a default has an example"
    return field.examples[0]


def _value(settings: Settings, key: Key) -> Any:
    value: Any = settings
    for name in key:
        assert isinstance(value, BaseModel)
        value = getattr(value, name)
    return value


def _toml(value: Any) -> str:
    """Return a value as TOML, whose texts, numbers and lists of texts are written as JSON's are."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    is_text = isinstance(value, SecretStr | Path)
    return json.dumps(str(value) if is_text else value, ensure_ascii=False)
