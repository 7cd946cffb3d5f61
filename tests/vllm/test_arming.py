"""What the plugin does to the arguments of an engine; none is started."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from demur.core.errors import CapabilityError, ConfigError
from demur.engines.transformers import TransformersEngine
from demur.integrations.vllm_serve import plugin
from demur.modeling.load import locate
from tests.vllm_engines import model_folder, needs_vllm

pytestmark = needs_vllm


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name the guard, with settings of its own; the key and the runner are forgotten afterwards."""
    (tmp_path / "guard.toml").write_text("port = 1\n")
    monkeypatch.setenv("VLLM_PLUGINS", "demur")
    monkeypatch.setenv("DEMUR_GUARD", str(tmp_path / "guard.toml"))
    for name in ("DEMUR_VLLM_KEY", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def arguments(**given: Any) -> Any:
    return import_module("vllm.engine.arg_utils").EngineArgs(
        **{"model": str(model_folder()), "dtype": "float32", **given}
    )


def arm(args: Any) -> None:
    import_module("demur.integrations.vllm_serve.arming").arm(args)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"enable_lora": True}, "LoRA"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"data_parallel_size": 2}, "data parallelism"),
        ({"runner": "pooling"}, "pooling models"),
        ({"async_scheduling": True}, "asynchronous scheduling"),
        ({"worker_cls": "my.Worker"}, "my.Worker"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative"),
    ],
)
def test_what_is_not_guarded_is_refused_by_name(given: dict[str, Any], why: str) -> None:
    with pytest.raises(CapabilityError, match=why):
        arm(arguments(**given))


def test_a_model_without_a_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match="no packaged detector"):
        arm(arguments())


def test_arguments_are_armed_once_and_keep_what_a_user_gave(
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = arguments(
        model=locate("embedded")[0], additional_config={"mine": 1}, logits_processors=["my:Own"]
    )
    arm(args)
    assert "JudgingCpuWorker" in args.worker_cls or "JudgingGpuWorker" in args.worker_cls
    assert args.logits_processors[0] == "my:Own"
    assert args.logits_processors[-1].endswith(":ForcedReply")
    assert args.async_scheduling is False
    assert args.additional_config["mine"] == 1
    assert "place of port" in caplog.text
    before = dict(args.additional_config)
    arm(args)
    assert args.additional_config == before


def test_a_model_has_the_identity_that_transformers_finds() -> None:
    args = arguments(model=locate("embedded")[0])
    arm(args)
    found = args.additional_config["demur_model"]
    expected = TransformersEngine.load("embedded", dtype="float32").model_id.as_dict()
    assert found == {**expected, "name": found["name"], "weights": ""}


def test_an_engine_of_our_own_is_left_alone() -> None:
    args = arguments(additional_config={"demur": "a hash"})
    arm(args)
    assert args.worker_cls == "auto"


def test_unwanted_the_plugin_leaves_vllm_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = import_module("vllm.engine.arg_utils").EngineArgs
    before = owner.create_engine_config
    for name in ("VLLM_PLUGINS", "DEMUR_GUARD"):
        with monkeypatch.context() as patch:
            patch.delenv(name)
            plugin.register()
            assert type(plugin.endpoints()) is plugin.Idle
    assert owner.create_engine_config is before
