"""The example of steering, on a tiny model."""

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.model_folder import save_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "steering.py"
AT_REPLY = re.compile(r"^(\w+) -?\d\.\d+ ", re.MULTILINE)


def test_it_steers_every_prompt_one_way_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["steering.py", str(model)])
    runpy.run_path(str(EXAMPLE))
    routes = AT_REPLY.findall(capsys.readouterr().out)
    assert len(routes) == 2
    assert set(routes) <= {"steer_to_refusal", "soften"}
