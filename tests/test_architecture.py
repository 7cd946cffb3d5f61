"""Keeps the promises of docs/architecture.md: which way imports run, sizes, and what loads what."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

from demur.core.registry import KINDS, import_named, methods

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "demur"
BENCHMARKS = ROOT / "benchmarks"
TESTS = ROOT / "tests"

PLUGIN_KINDS = {
    "engines", "detectors", "responders", "trainers", "datasets", "scorers", "metrics",
}  # fmt: skip
LAYERS = (
    {"cli", "integrations"},
    {"serving"},
    {"workflows", "studies"},
    {"guard"},
    PLUGIN_KINDS,
    {"modeling"},
    {"core"},
)
WITHOUT_MODELING = {"detectors", "responders", "metrics"}
ALONE = {"portable": {"core"}}
"""Files at the top, and the folders that they may import."""

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_HELP_S = 0.5

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    name: str
    path: Path
    nodes: tuple[ast.AST, ...]
    """Of its syntax tree, all of them."""

    @property
    def folder(self) -> str:
        """The part of the package, such as `core`; a file at the top is its own."""
        return [*self.name.split("."), ""][1]

    def functions(self) -> Iterator[Function]:
        """Yield all functions and methods."""
        return (node for node in self.nodes if isinstance(node, Function))


@cache
def modules() -> dict[str, Module]:
    """Return all modules by dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        nodes = tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found[name] = Module(name, path, nodes)
    return found


@cache
def imports_of(module: Module) -> set[str]:
    """Return demur's own modules that a module imports, by name too."""
    found: set[str] = set()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = within & modules().keys()
            found |= submodules
            if len(submodules) < len(within):
                found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_named":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}  # type: ignore[misc]
    return (found & modules().keys()) - {module.name}


def layer_of(folder: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if folder in layer)


def is_allowed(folder: str, imported: str) -> bool:
    """Tell whether a part of the package may import another one."""
    if imported in ("", folder):  # demur itself holds the version only
        return True
    if folder in ALONE:
        return imported in ALONE[folder]
    if imported == "modeling" and folder in WITHOUT_MODELING:
        return False
    return imported not in ALONE and layer_of(folder) < layer_of(imported)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{module.name} imports {imported}"
        for module in modules().values()
        for imported in sorted(imports_of(module))
        if not is_allowed(module.folder, modules()[imported].folder)
    ]
    assert wrong == []


def test_every_folder_has_its_place_in_the_import_rule() -> None:
    folders = {module.folder for module in modules().values()}
    assert folders <= {"", *ALONE, *set().union(*LAYERS)}


@pytest.mark.parametrize(
    ("folder", "imported", "expected"),
    [
        ("cli", "core", True),
        ("integrations", "serving", True),
        ("serving", "integrations", False),
        ("integrations", "cli", False),
        ("guard", "detectors", True),
        ("engines", "modeling", True),
        ("detectors", "modeling", False),
        ("detectors", "responders", False),
        ("core", "modeling", False),
        ("guard", "workflows", False),
        ("portable", "guard", False),
    ],
)
def test_the_import_rule_is_the_one_of_the_documentation(
    folder: str, imported: str, expected: bool
) -> None:
    assert is_allowed(folder, imported) is expected


def test_imports_of_modules_names_and_by_name_are_all_seen() -> None:
    seen = imports_of(modules()["demur.detectors.linear"])
    assert {"demur.core.reads", "demur.core.registry", "demur.detectors._logistic"} <= seen
    assert "demur.guard.fingerprint" in imports_of(modules()["demur.guard.loading"])


def test_no_module_imports_itself_through_others() -> None:
    graph = {module.name: imports_of(module) for module in modules().values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_nothing_is_imported_inside_a_function() -> None:
    wrong = [
        f"{module.name}, line {node.lineno}"
        for module in modules().values()
        for function in module.functions()
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert wrong == []


def test_only_the_registry_imports_by_name() -> None:
    importers = {
        module.name
        for module in modules().values()
        for node in module.nodes
        if (isinstance(node, ast.Attribute) and node.attr == "import_module")
        or (isinstance(node, ast.Name) and node.id in ("__import__", "import_module"))
    }
    assert importers == {"demur.core.registry"}


def test_no_import_is_relative() -> None:
    wrong = [
        f"{module.name}, line {node.lineno}"
        for module in modules().values()
        for node in module.nodes
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


def test_no_file_is_too_long() -> None:
    files = [path for of in (SOURCE, BENCHMARKS, TESTS) for path in sorted(of.rglob("*.py"))]
    num_lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: number for name, number in num_lines.items() if number > MAX_LINES} == {}


def test_no_function_is_too_long() -> None:
    long = {
        f"{module.name}.{function.name}": num_lines
        for module in modules().values()
        for function in module.functions()
        if (num_lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_has_one_public_name_that_exists(kind: str) -> None:
    assert methods(kind)
    for method in methods(kind).values():
        if any(find_spec(package) is None for package in method.packages):
            continue  # its own tests run where its packages are installed
        module = import_named(f"demur.{kind}.{method.name}")
        assert module.__all__ == [method.public]
        assert hasattr(module, method.public)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_says_in_one_line_what_it_is(kind: str) -> None:
    assert all(method.summary.endswith((".", ":")) for method in methods(kind).values())


@pytest.mark.parametrize("kind", sorted(PLUGIN_KINDS))
def test_every_kind_that_exists_is_listed(kind: str) -> None:
    assert (kind in KINDS) == (SOURCE / kind).is_dir()


def test_only_the_command_line_prints() -> None:
    printing = {
        module.folder
        for module in modules().values()
        for node in module.nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing <= {"cli"}


@pytest.mark.parametrize("name", ["demur.cli.main", "demur.portable"])
def test_heavy_packages_are_not_loaded_by(name: str) -> None:
    code = (
        f"import sys, {name}\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loads {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_appears_at_once() -> None:
    command = [str(Path(sys.executable).with_name("demur")), "--help"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor: the clock on the wall would count what else runs.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < MAX_HELP_S:
            return
    pytest.fail(f"demur --help takes {min(seconds):.2f} s")


def test_the_generated_pages_are_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
