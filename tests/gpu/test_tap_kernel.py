"""Taps as one kernel of a GPU: run by `make test-gpu`, where there is one."""

import pytest
import torch

from tests.gpu import needs_gpu

pytestmark = needs_gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("num_tokens", "d_model", "num_columns"),
    [(1, 576, 1), (37, 4096, 3), (512, 4096, 32), (5, 300, 7)],
)
def test_a_kernel_computes_products_and_norms(
    num_tokens: int, d_model: int, num_columns: int, dtype: torch.dtype
) -> None:
    kernel = pytest.importorskip("demur.engines.vllm.tap_kernel")
    state = torch.randn(num_tokens, d_model, device="cuda").to(dtype)
    weights = torch.randn(d_model, num_columns, device="cuda")
    products = torch.full((num_tokens + 2, num_columns), torch.nan, device="cuda")
    norms = torch.full((num_tokens + 2,), torch.nan, device="cuda")
    kernel.tap_all(state, weights, products, norms)
    exact = state.double()
    expected = exact @ weights.double()
    error = (products[:num_tokens].double() - expected).norm() / expected.norm()
    assert error < 1e-5
    torch.testing.assert_close(
        norms[:num_tokens].double(), exact.norm(dim=-1), rtol=1e-5, atol=1e-6
    )
    assert products[num_tokens:].isnan().all()
    assert norms[num_tokens:].isnan().all()


def test_states_may_lie_in_a_larger_tensor() -> None:
    kernel = pytest.importorskip("demur.engines.vllm.tap_kernel")
    whole = torch.randn(9, 128, 2, device="cuda")
    weights = torch.randn(128, 2, device="cuda")
    products, norms = torch.empty(9, 2, device="cuda"), torch.empty(9, device="cuda")
    kernel.tap_all(whole[..., 1], weights, products, norms)
    torch.testing.assert_close(products, whole[..., 1].contiguous() @ weights, rtol=1e-3, atol=1e-3)
