"""What an adapter's folder must hold, and which are refused."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from demur.core.adapters import CONFIG, WEIGHTS, LoraFolder
from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.interventions import UseAdapter
from demur.core.reads import Checkpoint
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.guard.responding import load_responder
from demur.modeling.quiet import quiet
from tests.adapters import in_peft, linear_maps, lora, with_manifest
from tests.tiny import tiny

CHAT = Chat.from_text("How are you?")


@pytest.fixture
def folder(tmp_path: Path) -> LoraFolder:
    return lora(tmp_path / "adapter", tiny())


def edit(folder: LoraFolder, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change a folder's settings; return the folder."""
    path = Path(folder.folder) / CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return path.parent


def test_a_folder_of_peft_says_what_it_adapts(tmp_path: Path) -> None:
    found = lora(tmp_path, tiny(), layers=[1, 3], rank=2)
    assert found.layers == (1, 3)
    assert [of.module for of in found.maps] == sorted(linear_maps(tiny(), [1, 3]))
    assert {of.shape_a[0] for of in found.maps} == {of.shape_b[1] for of in found.maps} == {2}
    assert {of.scaling for of in found.maps} == {8 / 2}
    assert found.model_id is None
    assert found.ref.first_layer == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.[01]\.mlp.*": 3}},
        {"alpha_pattern": {"model.layers.2.self_attn.o_proj": 1, "o_proj": 3}},
    ],
)  # fmt: skip
def test_the_scaling_of_each_map_is_that_of_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    found = lora(tmp_path, tiny(), **settings)
    theirs = {
        name.removeprefix("base_model.model."): module
        for name, module in in_peft(tiny(), found).model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {of.module: of.scaling for of in found.maps} == {
        name: pytest.approx(module.scaling["default"]) for name, module in theirs.items()
    }
    assert {of.module: of.shape_a[0] for of in found.maps} == {
        name: module.r["default"] for name, module in theirs.items()
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_what_is_more_than_low_rank_maps_is_refused_by_name(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        lora(tmp_path, tiny(), **settings)


def test_another_method_of_peft_is_refused_by_name(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with quiet():
        get_peft_model(copy.deepcopy(tiny().model), config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'IA3'"):
        LoraFolder.read(tmp_path)


def test_a_setting_that_demur_does_not_know_is_refused(folder: LoraFolder) -> None:
    path = edit(folder, lambda config: config.update(use_novel_trick=True))
    with pytest.raises(ConfigError, match="sets use_novel_trick to True"):
        LoraFolder.read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(r=8),
        lambda config: config.update(rank_pattern={"q_proj": 2}),
        lambda config: config.update(lora_alpha=0),
        lambda config: config.pop("lora_alpha"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    folder: LoraFolder, change: Callable[[dict[str, Any]], Any]
) -> None:
    with pytest.raises(DataError, match="expected"):
        LoraFolder.read(edit(folder, change))


def test_half_a_map_is_refused(folder: LoraFolder) -> None:
    path = Path(folder.folder) / WEIGHTS
    tensors = load_file(path)
    del tensors[folder.maps[0].keys[1]]
    save_file(tensors, path)
    with pytest.raises(DataError, match="do not belong together"):
        LoraFolder.read(path.parent)


def test_an_expert_is_refused(folder: LoraFolder) -> None:
    path = Path(folder.folder) / WEIGHTS
    tensors = load_file(path)
    a, b = folder.maps[0].keys
    for key in (a, b):
        tensors[key.replace("mlp.down_proj", "mlp.experts.3.w2")] = tensors.pop(key)
    save_file(tensors, path)
    with pytest.raises(ConfigError, match="one of several experts"):
        LoraFolder.read(path.parent)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_or_damaged_file_is_named(folder: LoraFolder, name: str) -> None:
    path = Path(folder.folder) / name
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=name):
        LoraFolder.read(path.parent)
    path.unlink()
    with pytest.raises(ConfigError, match="holds no adapter"):
        LoraFolder.read(path.parent)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_reference_finds_out_that_a_file_was_replaced(folder: LoraFolder, name: str) -> None:
    ref = folder.ref
    assert ref.checked() == folder
    other = lora(Path(folder.folder), tiny(), seed=1, lora_dropout=0.5)
    assert other.sha256 != folder.sha256
    with pytest.raises(DataError, match="was replaced while it was in use"):
        ref.checked()


def test_a_manifest_says_for_which_model(folder: LoraFolder) -> None:
    found = with_manifest(folder, tiny())
    assert found.model_id == tiny().model_id
    assert found.ref == folder.ref
    other = replace(tiny().model_id, tokenizer="another")
    line = f"adapter:{folder.folder}"
    load_responder(line, tiny().model_id)
    with pytest.raises(ModelMismatchError, match="another tokenizer"):
        load_responder(line, other)


@pytest.mark.parametrize(
    ("fields", "error", "problem"),
    [
        ({"kind": "detector"}, ConfigError, "holds a detector"),
        ({"method": "steering"}, ConfigError, "load it as steering:"),
        ({"sha256": {CONFIG: "0", WEIGHTS: "0"}}, DataError, "truncated or was changed"),
        ({"sha256": {}}, DataError, "incomplete or damaged"),
        ({"model_id": None}, DataError, "incomplete or damaged"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    folder: LoraFolder, fields: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        with_manifest(folder, tiny(), **fields)


def test_a_line_names_folder_and_scale(folder: LoraFolder) -> None:
    for line, scale in (("", 1.0), ("@0.5", 0.5), (",scale=-2", -2.0)):
        responder = load_responder(f"adapter:{folder.folder}{line}", tiny().model_id)
        assert responder.respond(CHAT, ()) == UseAdapter(folder.ref, scale)
    with pytest.raises(ConfigError, match="demur train sft"):
        load_responder("adapter", tiny().model_id)
    with pytest.raises(ConfigError, match="expected a finite number"):
        load_responder(f"adapter:{folder.folder}@inf", tiny().model_id)


@pytest.mark.parametrize("architecture", ["gpt2", "phi3"])
def test_an_adapter_of_other_modules_is_refused(folder: LoraFolder, architecture: str) -> None:
    engine = TransformersEngine(tiny(architecture))
    with pytest.raises(ModelMismatchError, match="has no such module in block 0"):
        engine.prepare([UseAdapter(folder.ref)])


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("layers.0.self_attn.q_proj", r"shape \[48, 32\], but the model's is \[32, 32\]"),
        ("layers.0.mlp.act_fn", "which is a SiLU"),
        ("layers.9.mlp.up_proj", "no such module in block 9"),
    ],
)
def test_an_adapter_of_other_shapes_is_refused(tmp_path: Path, module: str, problem: str) -> None:
    lora(tmp_path, tiny(), target_modules=["model.layers.0.mlp.up_proj"])
    tensors = load_file(tmp_path / WEIGHTS)
    renamed = {key.replace("layers.0.mlp.up_proj", module): of for key, of in tensors.items()}
    save_file(renamed, tmp_path / WEIGHTS)
    found = LoraFolder.read(tmp_path)
    with pytest.raises(ModelMismatchError, match=problem):
        TransformersEngine(tiny()).prepare([UseAdapter(found.ref)])


def test_a_number_that_is_not_finite_is_refused(folder: LoraFolder) -> None:
    path = Path(folder.folder) / WEIGHTS
    tensors = load_file(path)
    tensors[folder.maps[0].keys[0]][0, 0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(DataError, match="not finite"):
        TransformersEngine(tiny()).prepare([UseAdapter(LoraFolder.read(path.parent).ref)])


def test_what_is_kept_is_what_lies_below_the_first_adapted_block(tmp_path: Path) -> None:
    prompt = TransformersEngine(tiny()).render(CHAT)
    upper = UseAdapter(lora(tmp_path / "upper", tiny(), layers=[2, 3]).ref)
    assert upper.keeps(prompt) == (2, 0)
    assert upper.checkpoint == Checkpoint(2)
    off = replace(upper, scale=0.0)
    assert off.keeps(prompt) == (None, len(prompt))
    assert off.checkpoint is None
    everywhere = UseAdapter(lora(tmp_path / "everywhere", tiny()).ref)
    assert everywhere.keeps(prompt) == (0, 0)
    assert everywhere.checkpoint is None
    with pytest.raises(ConfigError, match="expected one of"):
        replace(upper, cache="drop")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ConfigError, match="expected 1 or more"):
        Checkpoint(0)
