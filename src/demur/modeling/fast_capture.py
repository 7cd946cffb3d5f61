"""The capture path for many prompts: packed where the model allows it, padded where it does not.

A packed pass is trusted only after some of the prompts, and one that forges the template's
markers, gave the same states as the plain pass. A model that cannot be packed is read in padded
batches, with a warning; so are prompts from the length on at which a model reads in another way.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Prompt
from demur.modeling.blocks import Parts
from demur.modeling.capture import capture
from demur.modeling.packed_capture import PackedCapture
from demur.modeling.packing import batches

TOKENS_A_BATCH = {"cpu": 1536}
"""Of a packed batch, by device: more does not pay, since activations leave the cache."""
TOKENS_A_BATCH_ELSEWHERE = 16384
LENGTH_OPTIONS = ("sliding_window", "attention_chunk_size")
"""Of a configuration: from that many tokens on, attention no longer sees the whole prompt."""
NUM_PROBES, MAX_PROBE_LENGTH = 4, 512
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest deviation of a state from the plain path's, of its norm; by the weights' format."""
HALF_TOLERANCE = 0.1
"""In half precision: rounding alone moves the last layers of some models by 0.06, and a token that
reads another prompt by far more."""
SHARE_OF_FARTHEST = 0.25
"""By which the farthest of many tokens counts: a token that reads another prompt lies farther."""


class SlowCaptureWarning(UserWarning):
    """A model cannot be read in the fast way."""


class FastCapture:
    """Reads many prompts of one model.

    Args:
        parts: Of the model, which is never changed.
        reads: What to read.
        prompts: All that will be read.
        probe: A prompt that forges the template's markers, to be compared too; None without one.
    """

    def __init__(
        self,
        parts: Parts,
        reads: Sequence[Read],
        prompts: Sequence[Prompt],
        *,
        probe: Prompt | None = None,
    ) -> None:
        self._parts = parts
        self._reads = tuple(reads)
        self._device = next(parts.body.parameters()).device
        self._limit = packable_length(parts.body.config)
        few = [prompt for prompt in prompts if len(prompt) < self._limit]
        self._packed = self._trusted(few, probe) if few and self._specs else None

    @property
    def _specs(self) -> list[CaptureSpec]:
        return [read for read in self._reads if isinstance(read, CaptureSpec)]

    @property
    def is_packed(self) -> bool:
        """True if prompts are read without padding."""
        return self._packed is not None

    def read(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Array, Readings]]:
        """Read prompts in batches of similar length.

        Yields:
            Which of the given prompts were read, and their readings: a `Stream`.
        """
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        fast = [row for row in order if self.is_packed and len(prompts[row]) < self._limit]
        plain = [row for row in order if not self.is_packed or len(prompts[row]) >= self._limit]
        budget = TOKENS_A_BATCH.get(self._device.type, TOKENS_A_BATCH_ELSEWHERE)
        if self._packed is not None:
            shared = self._packed.prefix_length
            for batch in batches(
                [len(prompts[r]) - shared for r in fast], budget=budget, is_padded=False
            ):
                rows = fast[batch.start : batch.stop]
                yield np.array(rows), self._packed([prompts[row] for row in rows])
        widths = [len(prompts[row]) for row in plain]
        for batch in batches(widths, budget=budget, is_padded=True):
            rows = plain[batch.start : batch.stop]
            yield np.array(rows), capture(self._parts, [prompts[row] for row in rows], self._reads)

    def _trusted(self, prompts: Sequence[Prompt], probe: Prompt | None) -> PackedCapture | None:
        """Return the packed path, if it gives the states of the plain one."""
        try:
            packed = PackedCapture(self._parts, self._reads, prompts)
            deviation = self._compare(packed, prompts, probe)
            if deviation <= TOLERANCE.get(
                next(self._parts.body.parameters()).dtype, HALF_TOLERANCE
            ):
                return packed
            reason = f"its states deviate by {deviation:.2g} of their norm"
        except (ConfigError, DataError):  # the reads or prompts are at fault, not the way
            raise
        except Exception as error:  # whatever a model cannot do, the plain path is there
            reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"this model cannot be read without padding, so reading is several times slower "
            f"({reason})",
            SlowCaptureWarning,
            stacklevel=3,
        )
        return None

    def _compare(
        self, packed: PackedCapture, prompts: Sequence[Prompt], probe: Prompt | None
    ) -> float:
        """Return how far packed states lie from plain ones, at most, of a state's norm."""
        short = sorted((p for p in prompts if len(p) <= MAX_PROBE_LENGTH), key=len)
        places = np.linspace(0, len(short) - 1, min(NUM_PROBES, len(short)))
        chosen = [short[int(place)] for place in places]
        with_probe = chosen
        if probe is not None and not any(isinstance(s.positions, tuple) for s in self._specs):
            with_probe = [probe, *chosen]
        if not with_probe:
            raise CapabilityError("no prompt is short enough to compare both ways of reading")
        plain = [capture(self._parts, [prompt], self._reads) for prompt in with_probe]
        together = PackedCapture(self._parts, self._reads, with_probe)(with_probe)
        deviations = [self._between(together, plain)]
        if chosen:
            deviations.append(self._between(packed(chosen), plain[-len(chosen) :]))
        return max(deviations)

    def _between(self, found: Readings, plain: Sequence[Readings]) -> float:
        """Return the largest deviation of any state, of its norm."""
        expected = Readings.concatenate(plain)
        deviations = [
            _deviation(np.asarray(ours), np.asarray(theirs))
            for spec in self._specs
            for ours, theirs in zip(found.values[spec], expected.values[spec], strict=True)
        ]
        return max(deviations)


def _deviation(ours: Array, theirs: Array) -> float:
    """Return how far states lie apart, of their norm: the most of any layer.

    Args:
        ours: [layer, d_model], or [layer, position, d_model], where positions count on average, and
            the farthest by a share: the rounding of bfloat16 moves a few of many tokens far.
        theirs: Likewise.
    """
    apart = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    if not np.isfinite(apart).all():
        return float("inf")
    of_positions = apart.reshape(len(apart), -1)
    if of_positions.shape[1] == 1:
        return float(of_positions.max())
    return float(max(of_positions.mean(1).max(), of_positions.max() * SHARE_OF_FARTHEST))


def packable_length(config: Any) -> int:
    """Return the number of tokens from which on a model reads prompts in another way."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    scaled = rope if rope.get("rope_type") in ("dynamic", "longrope") else {}
    stated = [getattr(text, name, None) for name in LENGTH_OPTIONS]
    stated.append(scaled.get("original_max_position_embeddings"))
    return min((int(number) for number in stated if number), default=sys.maxsize)
