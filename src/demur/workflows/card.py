"""Writes the model card of a detector artifact from its own fields."""

from dataclasses import replace
from typing import Any

from demur.core.artifacts import Artifact


def model_card(artifact: Artifact, *, notes: str = "") -> Artifact:
    """Return the artifact with its card: data, metrics, thresholds and limits.

    Args:
        artifact: With its provenance filled in.
        notes: Paragraphs that stand before the tables.
    """
    provenance = artifact.provenance
    metrics = provenance.get("metrics", {})
    lines = [
        f"# A `{artifact.method}` detector for {artifact.model_id.name}",
        "",
        "Scores prompts from the hidden states of the model's own prefill; higher is less safe.",
        "",
        *([notes.strip(), ""] if notes else []),
        "## Thresholds",
        "",
        f"Calibrated on {artifact.calibration.calibrated_on}. A rate holds for traffic like that; "
        "for other traffic, calibrate on benign prompts of your own.",
        "",
        "| false-positive rate | threshold | realised (95% interval) | benign groups |",
        "| --- | --- | --- | --- |",
        *(
            f"| {t.fpr:g}{' (default)' if t.fpr == artifact.calibration.default_fpr else ''} "
            f"| {t.threshold:.4f} | {t.realised_fpr:.4f} ({t.interval[0]:.4f} to "
            f"{t.interval[1]:.4f}) | {t.num_groups} |"
            for t in artifact.calibration.thresholds
        ),
        "",
        "## On the validation prompts",
        "",
        *(f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in metrics.items()),
        "",
        "## Data",
        "",
        *_data_table(provenance),
        "",
        "## Limits",
        "",
        "- It judges prompts for one model: another architecture, tokenizer or chat template is "
        "refused, other weights are judged by the stored fingerprint.",
        "- Good numbers on prompts like the training data say little about other traffic: measure "
        "on your own before you rely on it.",
        "- It is one layer of a defence. Determined attackers adapt to any detector.",
        "",
    ]
    return replace(artifact, card="\n".join(lines))


def _data_table(provenance: Any) -> list[str]:
    rows = ["| source | split | unsafe | safe |", "| --- | --- | --- | --- |"]
    for split in ("train", "val"):
        for source, counts in sorted(provenance.get(split, {}).get("sources", {}).items()):
            rows.append(f"| {source} | {split} | {counts['unsafe']} | {counts['safe']} |")
    return rows
