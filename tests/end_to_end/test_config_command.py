"""`demur config` on files that work, and on those that do not."""

from pathlib import Path

import pytest

from demur.serving.settings import load_settings
from tests.model_folder import CommandLine, assert_one_line

PACKAGED = "smollm2-135m-instruct"


@pytest.fixture
def demur(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> CommandLine:
    """Return the command line in an empty folder, without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMUR_GUARD", raising=False)
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guard.toml"


def test_a_valid_file_ends_in_what_would_be_served(demur: CommandLine, file: Path) -> None:
    file.write_text(f'port = 9000\ndetectors = ["{PACKAGED}"]\non_flagged = "block"\nfpr = 0.01\n')
    outcome = demur("config", "check", "guard.toml")
    assert outcome.exit_code == 0, outcome.stderr
    first, summary = outcome.stdout.splitlines()
    assert first == "guard.toml is valid"
    assert "embedded (auto) at http://127.0.0.1:9000" in summary
    assert f"prompts watched by {PACKAGED}" in summary
    assert "flagged prompts are blocked" in summary
    assert "all others answered by the model" in summary
    assert "no API keys" in summary


def test_the_file_that_the_environment_names_is_checked(
    demur: CommandLine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demur("config", "check").stdout.startswith("the settings are valid\n")
    file.write_text("observe = true")
    monkeypatch.setenv("DEMUR_GUARD", "guard.toml")
    outcome = demur("config", "check")
    assert outcome.stdout.startswith("guard.toml is valid\n")
    assert "flagged prompts are let through and recorded" in outcome.stdout


def test_unknown_keys_end_in_one_line(demur: CommandLine, file: Path) -> None:
    file.write_text("[limits]\nmax_wating = 3")
    for command in ("check", "show"):
        outcome = demur("config", command, "guard.toml")
        assert_one_line(outcome, "guard.toml: unknown key limits.max_wating: did you mean limits.")
        assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('model = "./none"', "model: there is no model './none'"),
        ('model = "none.gguf"', "model: there is no file none.gguf"),
        ('detectors = ["none"]', "detectors: there is no detector 'none'"),
        ('detectors = ["."]', "holds no detector"),
        ('detectors = ["prompted:no_field=1"]', "prompted has no field 'no_field'"),
        (f'detectors = ["{PACKAGED}"]\nfpr = 0.4', "no threshold for a false-positive rate of 0.4"),
        ('responder = "none"', "responder: there is no responder 'none'"),
        (f'[reply]\ndetector = "{PACKAGED}"', "reply.detector: detector"),
        (
            '[reply]\ndetector = "pretrained"\non_flagged = "safety_prompt"',
            "reply.on_flagged: responder 'safety_prompt' cannot take over",
        ),
        ('[audit]\npath = "none/audit.jsonl"', "audit.path: there is no folder none"),
    ],
)
def test_what_is_named_but_not_there_is_found_without_a_model(
    demur: CommandLine, file: Path, text: str, part: str
) -> None:
    file.write_text(text)
    assert_one_line(demur("config", "check", "guard.toml"), part)


def test_all_that_is_not_there_is_said_at_once(demur: CommandLine, file: Path) -> None:
    file.write_text('model = "./none"\ndetectors = ["none"]\nresponder = "none"')
    lines = demur("config", "check", "guard.toml").stderr.splitlines()
    starts = ("error: model: ", "detectors: ", "responder: ")
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_a_model_file_that_is_there_is_valid_and_not_read(demur: CommandLine, file: Path) -> None:
    (file.parent / "model.gguf").write_bytes(b"no model")
    file.write_text('model = "model.gguf"\nresponder = "none"\non_flagged = "refuse"')
    outcome = demur("config", "check", "guard.toml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "flagged prompts are refused" in outcome.stdout


def test_show_prints_file_environment_and_defaults_but_no_keys(
    demur: CommandLine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('api_keys = ["hidden-1", "hidden-2"]\nport = 9000')
    monkeypatch.setenv("DEMUR_SERVE_LIMITS__MAX_WAITING", "7")
    outcome = demur("config", "show", "guard.toml")
    assert outcome.exit_code == 0, outcome.stderr
    assert "hidden-" not in outcome.stdout
    for line in ('model = "embedded"', "port = 9000", "max_waiting = 7", "max_batch = 8"):
        assert f"\n{line}\n" in outcome.stdout


def test_what_show_prints_is_a_file_of_the_same_settings(demur: CommandLine, file: Path) -> None:
    file.write_text('port = 9000\n[audit]\npath = "audit.jsonl"')
    shown = file.with_name("shown.toml")
    shown.write_text(demur("config", "show", "guard.toml").stdout)
    assert load_settings(shown, {}, environment={}) == load_settings(file, {}, environment={})


def test_without_its_packages_the_command_says_how_to_install_them(
    demur: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.cli._server.find_spec", lambda name: None)
    assert_one_line(demur("config", "show"), "pip install 'demur[server]'")
