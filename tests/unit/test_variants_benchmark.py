"""Variants of a model: rounded numbers and merged adapters, which leave the model as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.variants import Judged, merged, quantised, rounded, row
from benchmarks.variants_report import report
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel
from tests.adapters import in_peft, lora
from tests.interventions import state_hash
from tests.tiny import tiny


def logits_of(model: LoadedModel) -> torch.Tensor:
    prompt = TransformersEngine(model).render(Chat.from_text("Why?"))
    return model.last_logits(prompt.token_ids)


def test_rounding_gives_the_nearest_of_the_steps_that_a_scale_has() -> None:
    values = torch.tensor([[1.27, -0.004, 0.626, 0.0], [0.0, 12.7, -6.34, 0.3]])
    expected = torch.tensor([[1.27, 0.0, 0.63, 0.0], [0.0, 12.7, -6.3, 0.3]])
    assert torch.allclose(rounded(values, 8), expected)
    by_two = rounded(values, 8, group=2)
    assert torch.allclose(by_two[0], torch.tensor([1.27, 0.0, 0.626, 0.0]))
    assert torch.allclose(by_two[1], torch.tensor([0.0, 12.7, -6.34, 0.29952756]))
    assert len(set(rounded(torch.randn(1, 500), 4).flatten().tolist())) <= 15
    assert torch.equal(rounded(torch.zeros(1, 4), 8), torch.zeros(1, 4))


def test_a_rounded_model_is_another_one_and_more_so_with_fewer_bits() -> None:
    model = tiny("qwen2")
    before, plain = state_hash(model), logits_of(model)
    apart = [
        float((logits_of(other) - plain).abs().max())
        for other in (
            quantised(model, 16),
            quantised(model, 8),
            quantised(model, 8, inputs=4),
            quantised(model, 3, group=8),
        )
    ]
    assert 0 < apart[0] < apart[1] < min(apart[2:])
    assert state_hash(model) == before
    assert torch.equal(logits_of(model), plain)


def test_a_merged_adapter_changes_the_copy_as_it_changes_the_model(tmp_path: Path) -> None:
    model = tiny("qwen2")
    adapter = lora(tmp_path, model)
    before = state_hash(model)
    found = merged(model, tmp_path)
    assert torch.allclose(logits_of(found), logits_of(in_peft(model, adapter)), atol=1e-4)
    assert not torch.allclose(logits_of(found), logits_of(model), atol=1e-4)
    assert found.parts.blocks[0] is not model.parts.blocks[0]
    assert state_hash(model) == before


def rates(ordinary: float, look_alike: float, unsafe: float) -> dict[str, Any]:
    shares = {"ordinary": ordinary, "look_alike": look_alike, "unsafe": unsafe}
    return {name: {"share": of, "interval": (of - 0.1, of + 0.1)} for name, of in shares.items()}


def test_a_row_compares_verdicts_and_rates() -> None:
    role = np.array(["ordinary", "ordinary", "look_alike", "unsafe"])
    plain = Judged(np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, False, False, True]), 0.0)
    other = Judged(np.array([0.1, 0.3, 0.2, 0.9]), np.array([False, True, False, True]), 1.2)
    found = row("other", other, plain, role)
    assert not found["is_accepted"]
    assert found["equal_verdicts"] == 0.75
    assert found["rank_correlation"] == pytest.approx(0.8)
    assert [found["flagged"][name]["share"] for name in ("ordinary", "unsafe")] == [0.5, 1.0]


def test_the_page_says_what_loads() -> None:
    variant = {
        "variant": "int8",
        "fingerprint_moved": 0.5,
        "is_accepted": True,
        "equal_verdicts": 0.99,
        "rank_correlation": 0.998,
        "flagged": rates(0.2, 0.3, 0.9),
    }
    page = report(
        {
            "machine": {"processor": "x", "cores": 2, "versions": {"torch": "2"}},
            "dtype": "bfloat16",
            "seconds": 60,
            "prompts": {"ordinary": 10, "look_alike": 10, "unsafe": 10},
            "variants": [variant, variant | {"variant": "int4", "is_accepted": False}],
        }
    )
    assert "| int8 | 0.50 | yes | 99.0% | 0.998 | 20.0% (10.0 to 30.0) |" in page
    assert "| int4 | 0.50 | no |" in page
