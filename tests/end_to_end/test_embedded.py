"""The embedded model with the packaged detector: what a newcomer meets first."""

import json
import runpy
import time
from pathlib import Path

import pytest
import torch

from demur.cli.main import run
from demur.core.interventions import UseAdapter
from demur.core.reads import CaptureSpec
from demur.core.results import PASS
from demur.core.types import Sampling
from demur.datasets import starter
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.loading import load_detector
from demur.modeling.capture import capture
from demur.modeling.load import load
from demur.serving.service import load_guard
from demur.serving.settings import ReplySettings, Settings

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "guard_a_model.py"


def test_the_unpacked_model_loads_in_under_three_seconds() -> None:
    load()
    started = time.perf_counter()
    load()
    assert time.perf_counter() - started < 3


def test_digits_are_split_as_the_models_own_pre_tokenizer_does() -> None:
    tokenizer = load().tokenizer
    pieces = tokenizer.convert_ids_to_tokens(
        tokenizer(" 1984 12", add_special_tokens=False).input_ids
    )
    assert [piece.strip("Ġ") for piece in pieces if piece.strip("Ġ")] == list("198412")


def test_the_packaged_detector_fits_the_embedded_model() -> None:
    engine = TransformersEngine.load("embedded")
    assert load_detector("pretrained", engine).name == "smollm2-135m-instruct"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_hardly_depend_on_the_number_format(dtype: str) -> None:
    engine = TransformersEngine.load("embedded", dtype=dtype)  # type: ignore[arg-type]
    load_detector("pretrained", engine)  # raises if the fingerprint differs by its tolerance


def test_captured_states_are_output_hidden_states_of_the_real_model() -> None:
    engine = TransformersEngine.load("embedded", dtype="float32")
    last, mean = Guard.load(engine).detectors[0].detector.reads
    assert isinstance(last, CaptureSpec)
    assert isinstance(mean, CaptureSpec)
    prompt = engine.render(starter.load("demo")[0].chat)
    (user,) = prompt.spans_of("user")
    readings = capture(engine.loaded.parts, [prompt], [last, mean])
    with torch.inference_mode():
        output = engine.loaded.model(torch.tensor([prompt.token_ids]), output_hidden_states=True)
    for place, layer in enumerate(last.layers[:-1]):  # transformers norms the last entry
        states = output.hidden_states[layer + 1][0]
        of_user = states[user.start : user.stop]
        scaled = of_user * torch.rsqrt(of_user.square().mean(-1, keepdim=True) + 1e-12)
        for read, expected in ((last, states[-1]), (mean, scaled.mean(0))):
            found = torch.from_numpy(readings.pooled(read)[0, place])
            assert torch.allclose(found, expected, atol=1e-3, rtol=1e-4)


def test_the_packaged_reply_detector_scans_a_reply_to_its_end() -> None:
    guard = Guard.load(TransformersEngine.load("embedded"), reply_detector="pretrained")
    reply = guard.reply("Name three rivers.", Sampling(max_tokens=12))
    assert (reply.route, reply.num_scanned) == (PASS, len(reply.token_ids))
    assert reply.reply_verdict is not None
    assert not reply.reply_verdict.flagged


def test_a_flagged_reply_may_go_on_under_the_packaged_adapter() -> None:
    reply = {"detector": "pretrained", "on_flagged": "adapter:pretrained", "cache": "keep"}
    served = load_guard(Settings(reply=ReplySettings(**reply)))  # type: ignore[arg-type]
    engine = TransformersEngine.load("embedded")
    made = Guard.load(engine, reply_detector="pretrained", reply_responder="adapter:pretrained@0.5")
    assert served.problem is None
    for guard, scale, cache in ((served.guard, 1.0, "keep"), (made, 0.5, "recompute")):
        assert guard.monitor is not None
        use = guard.monitor.intervention
        assert isinstance(use, UseAdapter)
        assert (use.scale, use.cache) == (scale, cache)


def test_the_demo_shows_a_dozen_prompts_and_that_passed_replies_are_untouched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run(["demo"])
    shown = capsys.readouterr().out
    assert not end.value.code
    assert shown.count("unguarded ") >= 12
    assert "are identical to the unguarded ones" in shown


def test_the_demo_flags_unsafe_prompts_and_lets_ordinary_ones_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(["demo", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    routes = [(row["kind"], row["guarded"]["route"]) for row in rows]
    assert routes.count(("ordinary", "pass")) == 3
    assert routes.count(("unsafe", "adapter")) == 3


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(("True", "False"))
    assert lines[1].startswith("pass ")
    assert len(lines) > 2
