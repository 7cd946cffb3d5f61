"""Methods in a line of text: a method's name, and the fields that differ from their defaults.

prompted:3                                    the method's first field
guard_model:models/shieldgemma-2b,num_calibrated=0
guard_model:models/toxic,format=classifier,unsafe_classes=["toxic","threat"]
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from demur.core import registry
from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Detector
from demur.core.reads import CaptureSpec, Read

_BETWEEN_FIELDS = re.compile(r",(?=\w+=)")
_FOLDERS = re.compile(r"[^:=,]*/")
_NAMED = re.compile(r"(\w+)=(.*)", re.DOTALL)


def is_line(text: str) -> bool:
    """Return whether a text begins with the name of a detector's method.

    >>> is_line("prompted:3"), is_line("my-detector")
    (True, False)
    """
    return method_in(text) in registry.methods("detectors")


def parse(text: str, *, kind: str = "detectors") -> tuple[str, dict[str, Any]]:
    """Return the method and the fields in a line; a value is JSON where it can be read so.

    Args:
        text: A method's name, and after a colon its fields.
        kind: Of the method.

    Raises:
        ConfigError: There is no such method, or it has no such field.

    >>> parse("prompted:3,num_calibrated=0")
    ('prompted', {'wrapper': 3, 'num_calibrated': 0})
    """
    name = method_in(text)
    method = cast(type[Any], registry.load(kind, name))
    types = {f.name: f.type for f in fields(method) if f.name not in ("reads", "watches")}
    first = next((f.name for f in fields(method) if f.name in types and not f.kw_only), "")
    values: dict[str, Any] = {}
    rest = text.partition(":")[2]
    for part in _BETWEEN_FIELDS.split(rest) if rest else []:
        named = _NAMED.fullmatch(part)
        key, value = (named[1], named[2]) if named else (first, part)
        if key not in types:
            raise ConfigError(
                f"{text!r}: {name} has no field {key!r}, expected some of {list(types)}"
            )
        found = _value(value)
        # Written as 1 or as 1.0, it is the same: what is kept by it is found again.
        values[key] = float(found) if types[key] is float and type(found) is int else found
    return name, values


def without_folders(text: str) -> str:
    """Return a line without the folders on the way to what it names: where they lie is private.

    >>> without_folders("guard_model:models/shieldgemma-2b,num_calibrated=0")
    'guard_model:shieldgemma-2b,num_calibrated=0'
    """
    return _FOLDERS.sub("", text)


def make(name: str, fields: Mapping[str, Any], *, reads: tuple[Read, ...] = ()) -> Detector:
    """Return an unfitted detector.

    Args:
        name: Of the method.
        fields: Those that differ from their defaults.
        reads: What it captures, if the method captures anything.

    Raises:
        ConfigError: There is no such method, or a field is wrong.
    """
    method = cast(type[Detector], registry.load("detectors", name))
    own = method.default_reads(1)
    if any(isinstance(read, CaptureSpec) for read in own):
        own = tuple(read for read in reads if isinstance(read, CaptureSpec))
    try:
        return method.from_hyper_parameters({**fields, "reads": [read.as_dict() for read in own]})
    except DataError as error:
        raise ConfigError(f"{name} with {dict(fields)}: {error}") from error


def method_in(text: str) -> str:
    """Return the name that a line begins with, as files are named.

    >>> method_in("guard-model:FOLDER")
    'guard_model'
    """
    return text.partition(":")[0].replace("-", "_")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
