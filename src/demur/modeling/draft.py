"""A draft head: guesses the state after a token from the one before it, without the model's body.

A linear map joins the state before a token with the token's embedding; one block of the model's
own class, which attends to the earlier tokens of the reply, makes the state after the token of it.

Paper: Li et al., EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty (2024), arXiv
2401.15077, section 4.1: the autoregression head, a fully connected layer and a decoder layer.

Differs: the block attends to the reply alone, not to the prompt, so that a prompt whose states
nobody kept need not be read again. It starts as the block whose state is guessed.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from demur.core.reads import CaptureSpec
from demur.modeling.blocks import Parts, find_parts
from demur.modeling.caches import fork
from demur.modeling.load import LoadedModel
from demur.modeling.tries import apart

PREFIX = "draft."
"""Of its tensors' names in an artifact."""


class DraftHead:
    """Guesses the states that a read would give.

    Args:
        loaded: The model; it is never changed. What the head shares with it is copied.
        read: Of one layer. A state of the final norm is normed by a copy of it.
        dtype: Of the head; None is the model's.

    Raises:
        ConfigError: The model has no such block.
    """

    def __init__(
        self, loaded: LoadedModel, read: CaptureSpec, *, dtype: torch.dtype | None = None
    ) -> None:
        parts = loaded.parts
        self._embed = loaded.model.get_input_embeddings()
        self.dtype = dtype or loaded.model.dtype
        self.device = loaded.device
        self.body: Any = _with_one_block(parts, parts.deepest([read]))
        own = find_parts(self.body)
        (self.block,) = own.blocks
        if read.site != "final_norm":
            _replace(self.body, own.final_norm, nn.Identity())
        self.join = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, 2 * parts.d_model, parts.d_model, bias=False
        )
        for module in (self.body, self.join):
            module.to(self.device).eval().requires_grad_(False)
            for parameter in module.parameters():  # buffers, as of positions, stay exact
                parameter.data = parameter.data.to(self.dtype)
        self.join.weight.zero_()

    def __call__(
        self,
        before: Tensor,
        token_ids: Tensor,
        *,
        positions: Tensor,
        mask: Tensor | dict[str, Tensor],
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Return the states [token, d_model] after some tokens, float32.

        Args:
            before: The state before each token, [token, d_model].
            token_ids: [token].
            positions: [token], in the whole sequence.
            mask: Says what attends to what; see `modeling.tries.masks_of`.
            cache: Of earlier tokens; it grows. None keeps nothing.
        """
        output = self.body(
            inputs_embeds=self.join(self.inputs(before, token_ids))[None],
            attention_mask=mask,
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        states: Tensor = output.last_hidden_state[0].float()
        return states

    def inputs(self, before: Tensor, token_ids: Tensor) -> Tensor:
        """Return what is joined, [token, 2 * d_model]: the states before, and the embeddings."""
        embeddings = self._embed(token_ids.to(self.device))
        return torch.cat([before.to(self.device, self.dtype), embeddings.to(self.dtype)], -1)

    @torch.inference_mode()
    def guess(
        self, before: Tensor, token_ids: Sequence[int], cache: DynamicCache, *, position: int
    ) -> tuple[Tensor, DynamicCache]:
        """Guess the states after several tokens, each as if it alone came next.

        Args:
            before: The state before them, [d_model].
            token_ids: All at one position.
            cache: Of the earlier tokens of the reply; it is not changed.
            position: In the whole sequence.

        Returns:
            The states [token, d_model], float32, and a cache with a column a token.
        """
        num_tokens, length, longer = len(token_ids), cache.get_seq_length(), fork(cache)
        states = self(
            before.expand(num_tokens, -1),
            torch.tensor(token_ids, device=self.device),
            positions=torch.full((num_tokens,), position, device=self.device),
            mask=apart(
                self.body.config, [length], num_tokens, dtype=self.dtype, device=self.device
            ),
            cache=longer,
        )
        return states, longer

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained, by the names that an artifact has for it."""
        of_block = self.block.state_dict(keep_vars=True)
        return {
            f"{PREFIX}join": self.join.weight,
            **{f"{PREFIX}block.{name}": tensor for name, tensor in of_block.items()},
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors as they are, without a copy.

        Args:
            tensors: Of the names and shapes that `tensors` gives.
        """
        self.join.weight = nn.Parameter(tensors[f"{PREFIX}join"], requires_grad=False)
        start = f"{PREFIX}block."
        self.block.load_state_dict(
            {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)},
            assign=True,
        )


def _with_one_block(parts: Parts, layer: int) -> Any:
    """Return a body of the model's own class with a copy of one block, and no vocabulary."""
    config: Any = copy.deepcopy(parts.body.config)
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = 1
    config.vocab_size, config.pad_token_id = 1, None
    if kinds:
        config.layer_types = [kinds[layer]]
    make: Any = type(parts.body)
    with torch.random.fork_rng(devices=[]):  # its random numbers are overwritten
        body = make(config)
    theirs = parts.body.state_dict()
    shared = {
        name: theirs[name]
        for name, tensor in body.state_dict().items()
        if name in theirs and theirs[name].shape == tensor.shape
    }
    body.load_state_dict(shared, strict=False)
    find_parts(body).blocks[0].load_state_dict(parts.blocks[layer].state_dict())
    return body


def _replace(body: nn.Module, old: nn.Module, new: nn.Module) -> None:
    (name,) = [name for name, child in body.named_children() if child is old]
    setattr(body, name, new)
