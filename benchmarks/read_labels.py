"""Holds the labellers of replies against somebody who reads them, arm by arm.

`--sheet` writes the replies that are to be read, with their prompts and in random order; which arm
they come from is not said, and equal replies to a prompt stand there once. The reader writes JSON
lines of `id` and `read`: `complied`, `refused` or `unclear`. `--read` holds the labellers against
them. Replies are those of `benchmarks.responders`, which has to have run with the same options.

    DEMUR_DATA=FOLDER python -m benchmarks.read_labels --model MODEL --sheet sheet.jsonl
    DEMUR_DATA=FOLDER python -m benchmarks.read_labels --model MODEL --read read.jsonl
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.arms import Arms, held_out_cases, tell
from benchmarks.gate import gate_of
from benchmarks.responders import RESULTS, parser_of, responder_lines
from benchmarks.words import LABELLERS
from demur.core import by_name
from demur.core.errors import DataError
from demur.core.readings import Array
from demur.datasets.demur_data import DemurData
from demur.guard.kept_replies import KeptReply, key_of
from demur.metrics.cohen_kappa import CohenKappa
from demur.studies._cases import Role

NUM_READ: Mapping[Role, int] = {"unsafe": 50, "look_alike": 30, "ordinary": 20}
"""Replies of an arm that are read, by role."""
WORDS = ("complied", "refused", "unclear")


@dataclass(frozen=True)
class ArmReplies:
    """The replies of one arm that are read."""

    name: str
    rows: Array
    """Of the prompts."""
    replies: Sequence[KeptReply]
    ids: Sequence[str]


def arms_of(arms: Arms, lines: Sequence[str]) -> list[ArmReplies]:
    """Return the replies that are read: the model's own, and those under each responder."""
    generator = np.random.default_rng(0)
    drawn = [
        generator.permutation(arms.cases.rows(role))[:number] for role, number in NUM_READ.items()
    ]
    rows = np.concatenate(drawn)
    found = []
    for name in ("base", *lines):
        replies = arms.base_replies(rows) if name == "base" else arms.replies(name, rows)
        ids = [_id(arms, row, reply) for row, reply in zip(rows, replies, strict=True)]
        found.append(ArmReplies(by_name.without_folders(name), rows, replies, ids))
    return found


def _id(arms: Arms, row: int, reply: KeptReply) -> str:
    content = key_of(arms.chats[row]) + reply.text
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_sheet(arms: Arms, found: Sequence[ArmReplies], path: Path) -> None:
    """Write what is to be read."""
    lines = {
        name: {"id": name, "prompt": arms.chats[row].last_user_text, "reply": reply.text}
        for arm in found
        for row, reply, name in zip(arm.rows, arm.replies, arm.ids, strict=True)
    }
    order = np.random.default_rng(1).permutation(sorted(lines))
    path.write_text("".join(f"{json.dumps(lines[name])}\n" for name in order), encoding="utf-8")
    tell(f"{len(lines)} replies in {path}")


def labels_of(path: Path) -> dict[str, str]:
    """Return what the reader found, by id.

    Raises:
        DataError: A line has no id, or a word that is none of `WORDS`.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if row.get("read") not in WORDS or "id" not in row:
            raise DataError(f"{path}, line {number}: expected an id, and read as one of {WORDS}")
        found[row["id"]] = row["read"]
    return found


def compared(arms: Arms, found: Sequence[ArmReplies], read: Mapping[str, str]) -> list[str]:
    """Return the lines of a table: each arm, and all replies, against the reader.

    Raises:
        DataError: A reply was not read.
    """
    lines = [
        "| replies | read | complied | refused | unclear | "
        + " | ".join(f"{name}: agreement | kappa" for name in LABELLERS)
        + " |",
        "| --- |" + " --- |" * (4 + 2 * len(LABELLERS)),
    ]
    parts: list[tuple[Array, list[Array], Array]] = []
    for arm in found:
        missing = [name for name in arm.ids if name not in read]
        if missing:
            raise DataError(f"{len(missing)} replies of {arm.name} were not read: {missing[0]}")
        by_reader = np.array([read[name] for name in arm.ids])
        outcomes = arms.labelling.label([arms.chats[row] for row in arm.rows], arm.replies)
        parts.append((by_reader, [outcomes.outcome, outcomes.second], arms.cases.group[arm.rows]))
        lines.append(_line(arm.name, *parts[-1]))
    every = [np.concatenate([labels[number] for _, labels, _ in parts]) for number in (0, 1)]
    of_all = [np.concatenate([part[place] for part in parts]) for place in (0, 2)]
    return [*lines, _line("all", of_all[0], every, of_all[1])]


def _line(name: str, read: Array, labels: Sequence[Array], group: Array) -> str:
    cells = [name, str(len(read)), *(f"{(read == word).mean():.2f}" for word in WORDS)]
    for of_labeller in labels:
        kappa = CohenKappa.of(read, of_labeller, group=group)
        low_high = "" if kappa.interval is None else " ({:.2f} to {:.2f})".format(*kappa.interval)
        cells.append(f"{(read == of_labeller).mean():.2f}")
        cells.append("-" if kappa.value is None else f"{kappa.value:.2f}{low_high}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write a sheet, or hold labellers against what was read."""
    parser = parser_of(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", type=Path, help="the file to write")
    what.add_argument("--read", type=Path, help="the file that the reader wrote")
    options = parser.parse_args()
    arms = Arms(
        options.model,
        held_out_cases(DemurData(), share=options.share),
        gate_of(options.model, options.detector),
        options.max_tokens,
    )
    name = arms.engine.model_id.name
    found = arms_of(arms, options.responders or responder_lines(options.model))
    if options.sheet:
        write_sheet(arms, found, options.sheet)
        return
    lines = compared(arms, found, labels_of(options.read))
    text = "\n".join(["# Labellers against a reader", "", *HEAD, "", *lines, ""])
    (RESULTS / name / "read_labels.md").write_text(text, encoding="utf-8")
    print(text)


HEAD = (
    "Made by `python -m benchmarks.read_labels`. One reader read the replies with their prompts, "
    "in random order, without their arm and without what the labellers say; they are greedy, and "
    "cut at the stated number of tokens. Each responder was on for every prompt. Kappa is Cohen's "
    "over complied, refused and unclear, with 95% intervals over groups of prompts.",
)


if __name__ == "__main__":
    main()
