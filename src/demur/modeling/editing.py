"""Changes what a model computes for some rows of a batch, and nothing else.

Hooks add to the states of the rows that are steered, and put other logits in the place of those
that have an output matrix of their own. No weight is touched, and hooks are always removed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from demur.modeling.blocks import Parts


@dataclass(frozen=True)
class Addition:
    """What is added to the states after a block."""

    layer: int
    """0-based; negative ones count from the end."""
    vector: Tensor
    """[d_model], on the model's device, float32."""
    gate: Tensor | None = None
    """[d_model]: a state gets the vector times its product with this."""

    def of(self, states: Tensor) -> Tensor:
        """Return what states [..., d_model] get, in their own number format."""
        if self.gate is None:
            return self.vector.to(states.dtype)
        amount = states.float() @ self.gate  # [...]
        return (amount[..., None] * self.vector).to(states.dtype)


@contextmanager
def adding(parts: Parts, additions: Mapping[int, Sequence[Addition]]) -> Iterator[None]:
    """Add to the states of some rows while the model runs inside the block.

    Args:
        parts: Of the model that will run.
        additions: By row of the batch; all tokens that the pass reads are changed.

    Raises:
        ConfigError: There is no such block.
    """
    of_blocks: dict[nn.Module, list[tuple[int, Addition]]] = {}
    for row, of_row in additions.items():
        for addition in of_row:
            block = parts.module(addition.layer, "block_out")
            of_blocks.setdefault(block, []).append((row, addition))

    def add(block: nn.Module, _inputs: object, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        changed = states.clone()
        for row, addition in of_blocks[block]:
            changed[row] = changed[row] + addition.of(changed[row])
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    with ExitStack() as stack:
        for block in of_blocks:
            stack.enter_context(block.register_forward_hook(add))
        yield


@contextmanager
def projecting(head: nn.Module, matrices: Mapping[int, Tensor]) -> Iterator[None]:
    """Use another output matrix for some rows while the model runs inside the block.

    Args:
        head: The model's own output projection.
        matrices: By row of the batch, [vocabulary, d_model].
    """
    alike: dict[int, list[int]] = {}
    for row, matrix in matrices.items():
        alike.setdefault(id(matrix), []).append(row)

    def project(_head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        for rows in alike.values():  # a matrix is read once for all of its rows
            changed[rows] = nn.functional.linear(inputs[0][rows], matrices[rows[0]])
        return changed

    with ExitStack() as stack:
        if matrices:
            stack.enter_context(head.register_forward_hook(project))
        yield
