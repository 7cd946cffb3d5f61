"""Settings come from options, the environment, a file and defaults, in this order."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from demur.core.errors import ConfigError
from demur.serving.settings import Settings, load_settings, named_file
from demur.serving.settings_toml import as_toml

EXAMPLE = Path(__file__).parents[2] / "examples" / "guard.toml"
PAGE = Path(__file__).parents[2] / "docs" / "guard_toml.md"
SECRET = "sk-5f1c8a"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = "", /, **variables: str) -> Settings:
    """Load guard.toml in the working folder."""
    path = Path("guard.toml")
    path.write_text(text, encoding="utf-8")
    return load_settings(path, {}, environment=variables)


def problems(text: str = "", /, **variables: str) -> list[str]:
    """Return the lines of the error that loading ends in."""
    with pytest.raises(ConfigError) as error:
        load(text, **variables)
    return str(error.value).splitlines()


def every_key() -> list[tuple[str, object]]:
    """Return all keys and defaults, as pydantic itself writes them out."""
    found: list[tuple[str, object]] = []
    for name, value in Settings().model_dump(mode="json").items():
        inner = value if isinstance(value, dict) else {"": value}
        found += [(f"{name}.{key}".rstrip("."), default) for key, default in inner.items()]
    return found


def test_without_anything_all_is_default() -> None:
    settings = load_settings(None, {}, environment={})
    assert settings == Settings()
    assert (settings.model, settings.host, settings.port) == ("embedded", "127.0.0.1", 8000)
    assert (settings.on_error, settings.audit.on_failure) == ("refuse", "refuse")


def test_an_option_wins_over_the_environment_which_wins_over_the_file(folder: Path) -> None:
    path = folder / "guard.toml"
    path.write_text('model = "file"\nhost = "file"\nport = 1\nfpr = 0.5\n[limits]\nmax_batch = 1\n')
    settings = load_settings(
        path,
        {"model": "option", "limits": {"max_choices": 3}},
        environment={
            "DEMUR_SERVE_MODEL": "environment",
            "DEMUR_SERVE_HOST": "environment",
            "DEMUR_SERVE_LIMITS__MAX_WAITING": "2",
        },
    )
    assert (settings.model, settings.host, settings.port) == ("option", "environment", 1)
    limits = settings.limits
    assert (limits.max_batch, limits.max_waiting, limits.max_choices) == (1, 2, 3)
    assert (settings.fpr, limits.max_messages) == (0.5, 256)


def test_the_environment_gives_numbers_truths_paths_lists_and_tables(folder: Path) -> None:
    settings = load(
        DEMUR_SERVE_FPR="0.01",
        DEMUR_SERVE_OBSERVE="true",
        DEMUR_SERVE_AUDIT__PATH="log/audit.jsonl",
        DEMUR_SERVE_DETECTORS='["pretrained", "guard_model:a,b=1"]',
        DEMUR_SERVE_LIMITS='{"max_waiting": 5}',
        DEMUR_SERVE_LIMITS__MAX_BATCH="3",
    )
    assert (settings.fpr, settings.observe) == (0.01, True)
    assert settings.audit.path == Path("log/audit.jsonl")
    assert settings.detectors == ("pretrained", "guard_model:a,b=1")
    assert (settings.limits.max_waiting, settings.limits.max_batch) == (5, 3)


def test_other_variables_of_demur_are_no_settings(folder: Path) -> None:
    assert load(DEMUR_DATA="x", DEMUR_CACHE="y", PATH="z") == Settings()


def test_a_variable_names_the_file_where_no_path_is_given(folder: Path) -> None:
    (folder / "named.toml").write_text("port = 7")
    (folder / "given.toml").write_text("port = 8")
    environment = {"DEMUR_GUARD": "named.toml"}
    assert named_file(environment) == Path("named.toml")
    assert load_settings(None, {}, environment=environment).port == 7
    assert load_settings(Path("given.toml"), {}, environment=environment).port == 8
    assert named_file({"DEMUR_GUARD": ""}) is None


def test_a_file_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    assert load("\ufeffport = 7").port == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[limits]\nmax_wating = 3", "unknown key limits.max_wating: did you mean limits.max_wait"),
        ("max_batch = 3", "unknown key max_batch: did you mean limits.max_batch?"),
        ("[limits]\nport = 3", "unknown key limits.port: did you mean port?"),
        ("[limts]\nmax_batch = 3", "unknown key limts: did you mean limits?"),
        ("zzzz = 3", "unknown key zzzz: demur config show lists all"),
        ("[limits]\nmax_waiting = 0", "limits.max_waiting is 0: expected at least 1"),
        ("port = 65536", "port is 65536: expected at most 65535"),
        ("fpr = 1", "fpr is 1: expected less than 1.0"),
        ("fpr = 0.0", "fpr is 0.0: expected more than 0.0"),
        ("port = '9000'", "port is '9000': expected a whole number"),
        ("port = true", "port is True: expected a whole number"),
        ("observe = 'no'", "observe is 'no': expected true or false"),
        ("model = 3", "model is 3: expected a text"),
        ("model = ''", "model is '': expected a text that is not empty"),
        ("[audit]\npath = 3", "audit.path is 3: expected a path"),
        ("[limits]\nrequest_timeout_s = inf", "request_timeout_s is inf: expected a finite number"),
        ("[limits]\nrequest_timeout_s = '1'", "request_timeout_s is '1': expected a number"),
        ("limits = 3", "limits: expected a table"),
        ("detectors = 'a'", 'detectors is \'a\': expected a list such as ["a", "b"]'),
        ("detectors = ['a', 1]", "detectors[1] is 1: expected a text"),
        ("detectors = []", "detectors is []: expected at least 1 of them"),
        ("on_flagged = 'stop'", "on_flagged is 'stop': expected 'respond', 'refuse' or 'block'"),
        ("[reply]\non_flagged = 'adapter:a'", "reply: expected detector beside on_flagged"),
        ("[audit]\nkeep_text = true", "audit: expected retention_days beside keep_text"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(folder: Path, text: str, line: str) -> None:
    (found,) = problems(text)
    assert found.startswith("guard.toml: ")
    assert line in found


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LIMITS__MAX_WATING", "3", "unknown variable DEMUR_SERVE_LIMITS__MAX_WATING: did you mean "
         "DEMUR_SERVE_LIMITS__MAX_WAITING?"),
        ("PRT", "3", "unknown variable DEMUR_SERVE_PRT: did you mean DEMUR_SERVE_PORT?"),
        ("PORT__X", "3", "unknown variable DEMUR_SERVE_PORT__X: did you mean DEMUR_SERVE_PORT?"),
        ("LIMITS", '{"max_wating": 3}', "unknown variable DEMUR_SERVE_LIMITS__MAX_WATING: did you "
         "mean DEMUR_SERVE_LIMITS__MAX_WAITING?"),
        ("PORT", "x", "DEMUR_SERVE_PORT is 'x': expected a whole number"),
        ("FPR", "", "DEMUR_SERVE_FPR is '': expected a number"),
        ("DETECTORS", "a", 'DEMUR_SERVE_DETECTORS is \'a\': expected a list such as ["a", "b"]'),
        ("LIMITS", "x", "DEMUR_SERVE_LIMITS: expected a table"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_environment_is_named_as_a_variable(
    folder: Path, name: str, value: str, line: str
) -> None:
    assert problems("", **{f"DEMUR_SERVE_{name}": value}) == [line]


def test_what_is_wrong_in_the_options_is_named_too() -> None:
    with pytest.raises(ConfigError, match=r"^the options: port is 99999: expected at most 65535$"):
        load_settings(None, {"port": 99999}, environment={})


def test_all_that_is_wrong_is_said_at_once_and_where_it_stands(folder: Path) -> None:
    assert problems("modell = 'x'\nport = 'y'\nhost = 3", DEMUR_SERVE_PORT="z") == [
        "guard.toml: unknown key modell: did you mean model?",
        "guard.toml: host is 3: expected a text",
        "DEMUR_SERVE_PORT is 'z': expected a whole number",
    ]


def test_two_sources_may_give_what_only_works_together(folder: Path) -> None:
    text = "[audit]\nkeep_text = true"
    assert load(text, DEMUR_SERVE_AUDIT__RETENTION_DAYS="30").audit.retention_days == 30


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"port = 1\nmodel = [\n", "guard.toml is no TOML: .*line 2, the end"),
        (b"port = 1\nmodel = 3 4", "guard.toml is no TOML: .*line 2, column 11"),
        (b"model = '\xff'", "guard.toml: byte 9 is no UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_place(
    folder: Path, content: bytes, line: str
) -> None:
    (folder / "guard.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=line):
        load_settings(Path("guard.toml"), {}, environment={})


def test_a_file_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read none\.toml: No such file"):
        load_settings(Path("none.toml"), {}, environment={})


@pytest.mark.parametrize(
    "text",
    [
        f"api_keys = '{SECRET}'",
        f"api_keys = ['{SECRET} ']",
        f"api_keys = ['{SECRET}', '']",
        f"api_keys = {{a = '{SECRET}'}}",
        f"api_key = '{SECRET}'",
        f"api_keys = ['{SECRET}', 3]",
        f"api_keys = ['{SECRET}']\nport = 'x'",
        f"[upstream]\napi_key = ['{SECRET}']",
        f"[upstream]\nurl = 'http://user:{SECRET}@localhost/v1'",
    ],
)
def test_no_message_repeats_a_key(folder: Path, text: str) -> None:
    assert SECRET not in "\n".join(problems(text))


def test_settings_do_not_show_keys_when_printed(folder: Path) -> None:
    settings = load(f"api_keys = ['{SECRET}']")
    assert SECRET not in repr(settings) + as_toml(settings)
    assert settings.api_keys == (SecretStr(SECRET),)


def test_a_hidden_key_is_taken_for_no_key(folder: Path) -> None:
    hidden = as_toml(load(f"api_keys = ['{SECRET}']"))
    assert tomllib.loads(hidden)["api_keys"] == ["**********"]
    (line,) = problems(hidden)
    assert line.startswith("guard.toml: api_keys[0]: expected")


def test_settings_are_what_their_own_file_says(folder: Path) -> None:
    settings = load(
        'detectors = ["a \\"b\\"", "ü"]\nfpr = 0.01\nobserve = true\nrefusal = "one\\ntwo"\n'
        '[limits]\nmax_batch = 2\nrequest_timeout_s = 1e-7\n[reply]\ndetector = "r"\n'
        '[audit]\npath = "a.jsonl"\nkeep_text = true\nretention_days = 1.5\n'
    )
    assert settings != Settings()
    assert load(as_toml(settings)) == settings


def test_the_example_says_every_key_with_its_default_and_a_comment() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    given = tomllib.loads(text)
    shown = dict(every_key())
    tables = {name.partition(".")[0] for name in shown if "." in name}
    assert tables == {name for name, value in given.items() if isinstance(value, dict)}
    assert {f"{table}.{key}" for table in tables for key in given[table]} < set(shown)
    for name, default in shown.items():
        table, _, key = name.rpartition(".")
        part = text.partition(f"[{table}]\n")[2] if table else text
        assert re.search(rf"^# .+\n(# )?{key} = ", part, re.MULTILINE), name
        inner = given[table] if table else given
        assert inner.get(key) == default, name


def test_the_example_works_also_with_each_key_that_it_leaves_out(folder: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert load(text) == Settings()
    left_out = [name for name, value in every_key() if value is None]
    for name, line in zip(left_out, re.finditer(r"^# (?=\w+ = )", text, re.M), strict=True):
        value: object = load(text[: line.start()] + text[line.end() :])
        for part in name.split("."):
            value = getattr(value, part)
        assert value is not None, name


def test_the_page_names_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name, _ in every_key() if f"| `{name}` |" not in page] == []
