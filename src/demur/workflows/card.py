"""Writes the model card of a detector artifact from its own fields."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from demur.core.artifacts import Artifact

INTRODUCTIONS: Mapping[str, str] = {
    "prompt": "Scores prompts from the hidden states of the model's own prefill; higher is less "
    "safe.",
    "reply": "Scores replies while they are decoded, from the hidden states of their tokens; "
    "higher is less safe. A reply is flagged once its score has reached the threshold.",
    "texts": "Scores prompts by their text alone; higher is less safe.",
    "own_pass": "Scores prompts by what a model answers about them in a pass of its own; higher is "
    "less safe.",
}
"""By what is judged, or by what is read where no read is a capture."""
THRESHOLDS = "## Thresholds"


def model_card(artifact: Artifact, *, notes: str = "") -> Artifact:
    """Return the artifact with its card: data, metrics, thresholds and limits.

    Args:
        artifact: With its provenance filled in.
        notes: Paragraphs that stand before the tables.
    """
    provenance = artifact.provenance
    metrics = provenance.get("metrics", {})
    judged = {"prompt": "prompts", "reply": "replies"}[artifact.watches]
    lines = [
        f"# A `{artifact.method}` detector for {artifact.model_id.name}",
        "",
        _introduction(artifact),
        "",
        *([notes.strip(), ""] if notes else []),
        THRESHOLDS,
        "",
        f"Calibrated on {artifact.calibration.calibrated_on}. A rate holds for traffic like that; "
        f"for other traffic, calibrate on benign {judged} of your own.",
        "",
        "| false-positive rate | threshold | realised (95% interval) | groups | promise |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {t.fpr:g}{' (default)' if t.fpr == artifact.calibration.default_fpr else ''} "
            f"| {t.threshold:.4f} | {t.realised_fpr:.4f} ({t.interval[0]:.4f} to "
            f"{t.interval[1]:.4f}) | {t.num_groups} | {t.promise.replace('prompts', judged)} |"
            for t in artifact.calibration.thresholds
        ),
        "",
        f"## On the validation {judged}",
        "",
        *(f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in metrics.items()),
        "",
        "## Data",
        "",
        *_data_table(provenance),
        "",
        "## Limits",
        "",
        f"- It judges {judged} for one model: another architecture, tokenizer or chat template is "
        "refused, other weights are judged by the stored fingerprint.",
        f"- Good numbers on {judged} like the training data say little about other traffic: "
        "measure on your own before you rely on it.",
        "- It is one layer of a defence. Determined attackers adapt to any detector.",
        "",
    ]
    return replace(artifact, card="\n".join(lines))


def _introduction(artifact: Artifact) -> str:
    reads = artifact.hyper_parameters.get("reads", [])
    for kind in ("texts", "own_pass"):
        if reads and all(kind in read for read in reads):
            return INTRODUCTIONS[kind]
    return INTRODUCTIONS[artifact.watches]


def notes_of(card: str) -> str:
    """Return the notes that a card was written with."""
    head = card.partition(f"\n{THRESHOLDS}\n")[0]
    found = (head.partition(introduction)[2] for introduction in INTRODUCTIONS.values())
    return "".join(found).strip()


def _data_table(provenance: Any) -> list[str]:
    rows = ["| source | split | unsafe | safe |", "| --- | --- | --- | --- |"]
    for split in ("train", "val", "calibration"):
        for source, counts in sorted(provenance.get(split, {}).get("sources", {}).items()):
            rows.append(f"| {source} | {split} | {counts['unsafe']} | {counts['safe']} |")
    return rows
