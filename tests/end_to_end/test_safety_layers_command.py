"""`demur study safety-layers` on a tiny model."""

import json
from pathlib import Path

from tests.model_folder import CommandLine, Workplace, labelled_prompts, write_lines

SMALL = (
    "num_pairs=8", "num_permutations=20", "num_draws=20", "reach=1", "num_lookalikes=3",
    "reply_tokens=2", "num_random=1",
)  # fmt: skip


def test_the_study_writes_its_table_and_its_pictures(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = [
        row | ({"kind": "look_alike"} if number % 4 == 1 else {})
        for number, row in enumerate(labelled_prompts(120))
    ]
    data, out = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    options = [part for value in SMALL for part in ("-p", value)]
    outcome = demur(
        "study", "safety-layers", "--data", data, *workplace.model, *options, "--out", out
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith("Safety layers: ")
    content = (out / "results.json").read_text(encoding="utf-8")
    found = json.loads(content)
    assert [row["blocks"] for row in found["rows"][:4]] == ["0", "1", "2", "3"]
    assert "safety layers" in {row["is"] for row in found["rows"][4:]}
    assert "MARKER" not in content
    assert {path.name for path in out.iterdir()} == {
        "results.json", "table.md", "gap.png", "slope.png", "scaling.png",
    }  # fmt: skip
