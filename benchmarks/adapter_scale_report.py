"""Writes what `benchmarks.adapter_scale` measured as a page."""

from collections.abc import Mapping
from typing import Any


def report(result: Mapping[str, Any]) -> str:
    """Return the page."""
    machine = result["machine"]
    lines = [
        f"# How strong the adapter is to be, on {result['model']['name']}",
        "",
        "Made by `python -m benchmarks.adapter_scale` on "
        f"{machine['processor']}, {machine['cores']} cores, in {result['seconds'] / 60:.0f} "
        "minutes, in which replies that an earlier run had kept were not drawn again. Validation "
        f"prompts: {result['unsafe']} unsafe ones that the gate flags, and of the safe ones of "
        f"a dangerous sound the {result['safe']} nearest to being flagged, of which "
        f"{result['safe_flagged']} are. Greedy replies of {result['max_tokens']} tokens "
        f"under `{result['responder']}` at each scale, 0 being the model by itself; outcomes by "
        "`reply_classifier`.",
        "",
        "| scale | safe refused | unsafe complied | sum | collapsed |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['scale']:g} | {row['safe_refused']:.1%} | {row['unsafe_complied']:.1%} | "
            f"{row['safe_refused'] + row['unsafe_complied']:.1%} | {row['collapsed']:.1%} |"
            for row in result["scales"]
        ),
        "",
        f"The lowest sum: {result['best']:g}.",
    ]
    return "\n".join(lines) + "\n"
