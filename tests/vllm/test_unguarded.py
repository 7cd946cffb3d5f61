"""What vLLM is not guarded with.

The last file: speculative decoding imports numba, and in a process that holds numba vLLM starts no
engine without a GPU.
"""

import pytest

from tests.vllm_engines import make, needs_vllm

pytestmark = needs_vllm


def test_speculative_decoding_is_refused_by_name() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    with pytest.raises(Exception, match=r"speculative|logits processors"):
        make(speculative_config=config)
