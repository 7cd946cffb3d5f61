"""Names the machine and the software of a measurement."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def library_versions(*names: str) -> dict[str, str]:
    """Return the versions of libraries, of demur and of Python, by name."""
    found = {name: version(name) for name in ("demur", *names)}
    return {**found, "python": platform.python_version()}


def describe_machine() -> dict[str, object]:
    """Return the processor, cores, memory and library versions."""
    names = ("demur", "torch", "transformers", "numpy", "scikit-learn")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
