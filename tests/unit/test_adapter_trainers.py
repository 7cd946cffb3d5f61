"""Training of adapters: what is changed and what is not, what is written, and going on later."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demur.core.adapters import CONFIG, WEIGHTS
from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.training import Progress, Trainer
from demur.modeling.labelled import label_log_probs
from demur.modeling.load import LoadedModel, load
from demur.modeling.lora import Adapted, Lora
from demur.trainers import _adapter, _tuning
from demur.trainers._adapter import parted
from demur.trainers._checkpoints import Checkpoint
from demur.trainers._objectives import TokenMean
from demur.trainers._rows import constant
from demur.trainers._said import Limits, read_corpus
from demur.trainers._tuning import Items, Plan, tune
from demur.trainers.derta import DertaTrainer
from demur.trainers.dpo import DpoTrainer
from demur.trainers.sft import SftTrainer
from demur.trainers.unlearning import UnlearningTrainer
from demur.workflows.train import checkpoint_path, train
from demur.workflows.training_report import REPORT, chart
from tests.adapters import in_plain_peft
from tests.model_folder import save_model
from tests.tuning import QUICK, examples, run_on

TRAINERS: Mapping[str, Callable[..., Trainer]] = {
    "sft": SftTrainer,
    "dpo": DpoTrainer,
    "derta": DertaTrainer,
    "unlearning": UnlearningTrainer,
}
ONE_STEP: Mapping[str, Any] = {"rank": 4, "steps": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tuning") / "model")


@pytest.fixture(params=TRAINERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Trainer]:
    return TRAINERS[str(request.param)]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


class KilledError(Exception):
    """Stands for a kill."""


def killed_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.stage == "training" and progress.done == step:
            raise KilledError

    return report


def tuned(loaded: LoadedModel, lora: Lora, *, steps: int = 4) -> Adapted:
    corpus = read_corpus(loaded, examples(), limits=Limits(64, 32), seed=0)
    rows = [constant(of.reply()) for of in corpus.said]
    adapted = Adapted(loaded, lora, seed=0)
    plan = Plan(steps, 4, 0.5, 5e-3, 0.0, 0.0, 0)
    nowhere = Checkpoint(None, "")
    tune(
        adapted, Items(rows, []), TokenMean(), plan=plan, checkpoint=nowhere,
        report=lambda _progress: None,
    )  # fmt: skip
    return adapted


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace(".base_layer", ""): weight.detach().clone()
        for name, weight in model.named_parameters()
        if "lora_" not in name
    }


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([[256, 84, 82, 68, 81, 198, 71, 72]])).logits
    return logits


def test_the_models_own_weights_stay_as_they_are_bit_for_bit(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    before = own_weights(loaded.model)
    adapted = tuned(loaded, Lora(4, 8))
    after = own_weights(loaded.model)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.any() for name, tensor in adapted.tensors().items() if "lora_B" in name)


def test_without_its_adapters_the_model_is_itself_exactly(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    before = logits_of(loaded.model)
    adapted = tuned(loaded, Lora(4, 8))
    with_adapters = logits_of(loaded.model)
    with adapted.off():
        assert torch.equal(logits_of(loaded.model), before)
    assert torch.equal(logits_of(loaded.model), with_adapters)
    assert not torch.allclose(with_adapters, before)


def test_untrained_adapters_change_nothing(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    before = logits_of(loaded.model)
    Adapted(loaded, Lora(4, 8), seed=0)
    assert torch.equal(logits_of(loaded.model), before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_in_bfloat16_gradients_are_float32_and_point_where_exact_ones_do(
    architecture: str, tmp_path: Path
) -> None:
    folder, found = save_model(tmp_path / "model", architecture), {}
    for dtype in ("bfloat16", "float32"):
        loaded = load(folder, dtype=dtype)
        adapted = Adapted(loaded, Lora(4, 8), seed=0)
        with adapted.off():
            before = logits_of(loaded.model)
            with adapted.computing():
                assert torch.equal(logits_of(loaded.model), before)
        for name, weight in adapted.weights().items():
            assert weight.dtype == torch.float32
            if "lora_B" in name:
                weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
        said = read_corpus(loaded, examples(), limits=Limits(64, 32), seed=0).said
        with adapted.computing():
            log_probs = label_log_probs(loaded, [of.reply() for of in said])
        torch.cat(log_probs).mean().backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad for weight in adapted.weights().values()]
        assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)
        found[dtype] = torch.cat([grad.flatten() for grad in grads if grad is not None])
    assert torch.cosine_similarity(found["bfloat16"], found["float32"], dim=0) > 0.98


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "gemma3", "mixtral"])
def test_layers_are_adapted_by_their_number_whatever_they_are_called(
    architecture: str, tmp_path: Path
) -> None:
    loaded = load(save_model(tmp_path / "model", architecture), dtype="float32")
    adapted = Adapted(loaded, Lora(2, 4, layers=(1, -1)), seed=0)
    holders = [
        number
        for number, block in enumerate(loaded.parts.blocks)
        if any("lora_" in name for name, _ in block.named_parameters())
    ]
    assert holders == [1, 3]
    assert len(adapted.weights()) == sum(
        "lora_" in name for name, _ in loaded.model.named_parameters()
    )


@pytest.mark.parametrize(("modules", "expected"), [("attention", "attn"), ("mlp", "mlp")])
def test_one_part_of_a_block_can_be_adapted_alone(
    folder: Path, modules: Any, expected: str
) -> None:
    adapted = Adapted(load(folder, dtype="float32"), Lora(2, 4, modules=modules), seed=0)
    assert adapted.weights()
    assert all(expected in name for name in adapted.weights())


def test_blocks_that_do_not_exist_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        Adapted(load(folder, dtype="float32"), Lora(2, 4, layers=(4,)), seed=0)


def test_a_block_without_linear_maps_is_refused(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    for block in loaded.parts.blocks:
        for name, _ in list(block.named_children()):
            setattr(block, name, nn.Identity())
    with pytest.raises(CapabilityError, match="no linear map"):
        Adapted(loaded, Lora(2, 4), seed=0)


def test_below_the_lowest_adapted_block_nothing_is_kept_for_the_way_back(folder: Path) -> None:
    loaded = load(folder, dtype="float32")
    Adapted(loaded, Lora(2, 4, layers=(2,)), seed=0)
    needed: list[bool] = []
    handles = [
        block.register_forward_hook(
            lambda _module, _args, output: needed.append(
                (output if isinstance(output, Tensor) else output[0]).requires_grad
            )
        )
        for block in loaded.parts.blocks
    ]
    corpus = read_corpus(loaded, examples(1), limits=Limits(64, 32), seed=0)
    label_log_probs(loaded, [corpus.said[0].reply()])
    for handle in handles:
        handle.remove()
    assert needed == [False, False, True, True]


def test_a_half_precision_model_gets_adapters_of_full_precision(folder: Path) -> None:
    loaded = load(folder, dtype="bfloat16")
    adapted = tuned(loaded, Lora(4, 8))
    assert {weight.dtype for weight in adapted.weights().values()} == {torch.float32}
    assert {weight.dtype for weight in own_weights(loaded.model).values()} == {torch.bfloat16}
    assert all(tensor.dtype == torch.float32 for tensor in adapted.tensors().values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_written_gives_the_same_logits_in_plain_peft(
    architecture: str, tmp_path: Path
) -> None:
    source = save_model(tmp_path / "model", architecture)
    out = tmp_path / "adapter"
    outcome = train(SftTrainer(**QUICK, held_out=0.5), examples(), run_on(source), out)
    fresh = load(source, dtype="float32")
    corpus = read_corpus(fresh, examples(), limits=Limits(256, 128), seed=3)
    _, held = parted(corpus, share=0.5, seed=3)
    for when in ("before", "after"):
        if when == "after":
            in_plain_peft(fresh.model, out)
        for kind in ("helpful", "refusal"):
            rows = [of.reply() for of in held if of.reply().kind == kind]
            log_probs = torch.cat([label_log_probs(fresh, [row])[0].detach() for row in rows])
            expected = outcome.metrics[f"nll_{kind}_{when}"]
            assert float(-log_probs.mean()) == pytest.approx(expected, rel=1e-5)
    assert set(files_of(out)) == {CONFIG, WEIGHTS, REPORT, "README.md", "demur.json"}


def test_the_trainers_own_logits_are_those_of_plain_peft(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder, dtype="float32")
    adapted = tuned(loaded, Lora(4, 8, layers=(1, 2)))
    (tmp_path / CONFIG).write_bytes(adapted.config())
    save_file(adapted.tensors(), tmp_path / WEIGHTS, {"format": "pt"})
    fresh = load(folder, dtype="float32")
    model = in_plain_peft(fresh.model, tmp_path)
    assert torch.equal(logits_of(model), logits_of(loaded.model))


def test_the_manifest_names_every_file_and_the_method(folder: Path, tmp_path: Path) -> None:
    train(SftTrainer(**QUICK), examples(), run_on(folder), tmp_path / "made")
    manifest = json.loads((tmp_path / "made" / "demur.json").read_text(encoding="utf-8"))
    assert (manifest["kind"], manifest["method"]) == ("responder", "adapter")
    assert set(manifest["sha256"]) == {CONFIG, WEIGHTS, REPORT}
    assert manifest["fields"]["layers"] == [0, 1, 2, 3]
    config = json.loads((tmp_path / "made" / CONFIG).read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert config["base_model_name_or_path"] == "model"


def test_a_killed_training_goes_on_to_the_same_bytes(
    make: Callable[..., Trainer], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tuning, "STEPS_A_CHECKPOINT", 2)
    trainer = make(**QUICK)
    train(trainer, examples(), run_on(folder), tmp_path / "whole")
    with pytest.raises(KilledError):
        train(trainer, examples(), run_on(folder, report=killed_at(5)), tmp_path / "killed")
    assert checkpoint_path(tmp_path / "killed").is_file()
    assert not (tmp_path / "killed").exists()
    steps: list[int] = []
    watched = run_on(folder, report=lambda of: steps.append(of.done))
    train(trainer, examples(), watched, tmp_path / "killed")
    assert steps[-2:] == [5, 6]
    assert 4 not in steps
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not checkpoint_path(tmp_path / "killed").exists()


@pytest.mark.parametrize("change", ["seed", "steps", "examples", "damage"])
def test_a_checkpoint_of_another_training_is_not_gone_on_from(
    change: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tuning, "STEPS_A_CHECKPOINT", 2)
    killed = run_on(folder, report=killed_at(3))
    with pytest.raises(KilledError):
        train(SftTrainer(**QUICK), examples(), killed, tmp_path / "made")
    trainer = SftTrainer(**{**QUICK, "steps": 5 if change == "steps" else 6})
    given = examples()
    if change == "examples":
        given[0] = replace(given[0], safe_response="Never.")
    if change == "damage":
        checkpoint_path(tmp_path / "made").write_bytes(b"no tensors")
    steps: list[int] = []
    seed = 4 if change == "seed" else 3
    watched = run_on(folder, seed=seed, report=lambda of: steps.append(of.done))
    train(trainer, given, watched, tmp_path / "made")
    assert steps[0] == 1


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    make: Callable[..., Trainer], folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        train(make(**QUICK), examples(), run_on(folder, seed=seed), tmp_path / name)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert files_of(tmp_path / "first")[WEIGHTS] != files_of(tmp_path / "other")[WEIGHTS]


@pytest.mark.parametrize("name", ["dpo", "derta", "unlearning"])
def test_methods_that_learn_from_harmful_replies_refuse_to_go_without(
    name: str, folder: Path
) -> None:
    given = [replace(example, harmful_response=None) for example in examples()]
    with pytest.raises(DataError, match="harmful_response"):
        TRAINERS[name](**QUICK).train(given, run_on(folder))


def test_the_report_is_one_small_page_that_needs_no_network(folder: Path, tmp_path: Path) -> None:
    train(DertaTrainer(**QUICK), examples(), run_on(folder), tmp_path / "made")
    page = (tmp_path / "made" / REPORT).read_text(encoding="utf-8")
    assert len(page) < 40_000
    assert "loss, transition" in page
    assert not any(word in page for word in ("http", "<script", "say red", "take red"))


def test_a_chart_has_the_first_and_the_last_value_and_all_steps() -> None:
    found = chart("loss", [4.0, None, 2.0, 0.0], window=2)
    assert (found.low, found.high, found.first, found.last) == ("0", "4", "4", "1")
    assert found.raw == "52.0,12.0 292.0,92.0 412.0,172.0"
    assert found.mean == "52.0,12.0 292.0,52.0 412.0,132.0"


@pytest.mark.parametrize(
    ("beyond", "trainer", "expected"),
    [
        (1, SftTrainer(**ONE_STEP), 1e-3), (0, SftTrainer(**ONE_STEP), 2e-4),
        (1, SftTrainer(**ONE_STEP, learning_rate=5e-4), 5e-4), (1, DpoTrainer(**ONE_STEP), 2e-4),
        (1, UnlearningTrainer(**ONE_STEP, learning_rate=None), 1e-3),
    ],
)  # fmt: skip
def test_the_learning_rate_goes_by_the_size_of_the_model_unless_it_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, beyond: int, trainer: Trainer, expected: float
) -> None:
    loaded = load(folder, dtype="float32", device="cpu")
    num_weights = sum(weights.numel() for weights in loaded.model.state_dict().values())
    monkeypatch.setattr(_adapter, "SMALL_MODEL", num_weights + beyond)
    assert trainer.train(examples(), run_on(folder)).metrics["learning_rate"] == expected
