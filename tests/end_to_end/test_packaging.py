"""The wheel holds what the package needs, and installing it never moves an installed torch."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
OTHER_TORCH = "2.9.0"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing is written into the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(SOURCE, copy / "src", ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", out, copy], check=True)
    (wheel,) = out.iterdir()
    return wheel


@pytest.fixture(scope="module")
def names(wheel_path: Path) -> set[str]:
    """Return the files of the wheel."""
    with zipfile.ZipFile(wheel_path) as wheel:
        return set(wheel.namelist())


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Make an environment that holds the metadata of ours, but of another torch and no demur.

    The requirements of our real packages count; no package is downloaded.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for found in distributions():
        name = found.metadata["Name"]
        if name.lower() not in ("torch", "demur"):
            write_metadata(site, name, found.version, found.read_text("METADATA") or "")
    torch = distribution("torch").read_text("METADATA") or ""
    ours = distribution("torch").version
    changed = torch.replace(f"Version: {ours}", f"Version: {OTHER_TORCH}", 1)
    write_metadata(site, "torch", OTHER_TORCH, changed)
    return tmp_path / "venv" / "bin" / "python"


def write_metadata(site: Path, name: str, version: str, metadata: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


def installs(machine: Path, wheel_path: Path, *constraints: str) -> set[str]:
    """Return what pip would install on a machine, by name."""
    options = ("--dry-run", "--no-index", "--report", "-")
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [*PIP, "--python", machine, "install", *options, wheel_path, *constraints],
        env={**settings, "PIP_CONFIG_FILE": os.devnull},  # no index, and no folder of wheels
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {item["metadata"]["name"] for item in json.loads(done.stdout)["install"]}


def test_the_wheel_holds_every_file_of_the_package(names: set[str]) -> None:
    expected = {
        str(path.relative_to(SOURCE))
        for path in (SOURCE / "demur").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert {"demur/py.typed", "demur/datasets/starter.jsonl"} <= names


def test_the_wheel_holds_detectors_and_an_adapter_for_the_embedded_model(names: set[str]) -> None:
    found = {name.rpartition("/")[0] for name in names if name.endswith("/demur.json")}
    adapters = {folder for folder in found if "/adapters/" in folder}
    assert all(folder.startswith("demur/pretrained/") for folder in found)
    for folders, needed in (
        (found - adapters, {"model.safetensors", "thresholds.json"}),
        (adapters, {"adapter_model.safetensors", "adapter_config.json"}),
    ):
        assert folders
        assert {f"{folder}/{name}" for folder in folders for name in needed} <= names


def test_the_wheel_holds_nothing_but_the_package(names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in names} == {"demur"}
    assert not any({"tests", "__pycache__"} & set(name.split("/")) for name in names)


def test_the_wheel_brings_the_command(wheel_path: Path, names: set[str]) -> None:
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel_path) as wheel:
        assert "demur = demur.cli.main:run" in wheel.read(entry).decode()


def test_an_installed_torch_of_another_version_stays(machine: Path, wheel_path: Path) -> None:
    assert installs(machine, wheel_path) == {"demur"}


def test_the_dry_run_would_notice_a_torch_that_must_move(machine: Path, wheel_path: Path) -> None:
    with pytest.raises(AssertionError, match="torch"):
        installs(machine, wheel_path, f"torch!={OTHER_TORCH}")
