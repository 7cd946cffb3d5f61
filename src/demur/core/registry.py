"""Finds methods: a folder is a kind, a file is a method, the file's name is its public name.

Listing reads the files without importing them. This is the one place that imports by name.
"""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from demur.core.errors import ConfigError, MissingPackageError

KINDS = (
    "detectors", "responders", "trainers", "scorers", "datasets", "engines", "metrics", "studies",
)  # fmt: skip

_ROOT = Path(__file__).parents[1]
_ONE = {"studies": "study"}
"""What one of a kind is called, where it is more than the kind's name without its `s`."""


@dataclass(frozen=True)
class Method:
    """What a method's file says of itself."""

    kind: str
    name: str
    summary: str
    """The first line of the file's docstring."""
    docstring: str
    public: str
    """The one public object of the file."""
    packages: tuple[str, ...] = ()
    """Import names that the method needs beyond the required dependencies (`NEEDS` in the file)."""


def _literal(tree: ast.Module, name: str) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return None


def describe(kind: str, path: Path) -> Method | None:
    """Return what the file or package at `path` says of itself; None if it is no method."""
    source = path / "__init__.py" if path.is_dir() else path
    if (
        path.stem.startswith("_")
        or (path.is_file() and path.suffix != ".py")
        or not source.exists()
    ):
        return None
    tree = ast.parse(source.read_text(encoding="utf-8"))
    public = _literal(tree, "__all__")
    if not public:
        return None
    doc = ast.get_docstring(tree) or ""
    packages = tuple(_literal(tree, "NEEDS") or ())
    return Method(kind, path.stem, doc.split("\n")[0], doc, public[0], packages)


@cache
def methods(kind: str) -> Mapping[str, Method]:
    """Return the methods of a kind by name, without importing any; files are read once.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}: expected one of {KINDS}")
    found = (describe(kind, path) for path in sorted((_ROOT / kind).iterdir()))
    return {method.name: method for method in found if method is not None}


def load(kind: str, name: str) -> Any:
    """Return the public object of a method.

    Args:
        kind: A folder, such as `detectors`.
        name: A file's name in it; `-` and `_` are alike.

    Raises:
        ConfigError: There is no such kind or method.
        MissingPackageError: A package that the method needs is not installed.
    """
    known = methods(kind)
    one = _ONE.get(kind, kind[:-1])
    method = known.get(name.replace("-", "_"))
    if method is None:
        raise ConfigError(f"there is no {one} {name!r}: expected one of {sorted(known)}")
    missing = [package for package in method.packages if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"{one} {name!r} needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    return getattr(import_named(f"demur.{kind}.{method.name}"), method.public)


def import_named(module: str) -> ModuleType:
    """Import one of demur's own modules by name: for what must not be loaded before it is needed.

    Raises:
        ConfigError: The name is not one of demur's.
    """
    if not module.startswith("demur."):
        raise ConfigError(f"{module!r} is no module of demur")
    return importlib.import_module(module)
