"""One capture for all detectors gives each what a capture of its own would, layer by layer too."""

import numpy as np
import pytest

from demur.core.protocols import Detector
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec, Read, Texts
from demur.core.shared_reads import SharedReads
from demur.detectors.layered_prototypes import LayeredPrototypes
from demur.detectors.length import Length
from demur.detectors.linear import Linear
from demur.engines.fake import FakeEngine
from demur.workflows.layer_values import Level, layer_values, levels_of
from tests.guards import marked_texts, read_texts, targets_of

NUM_BLOCKS = 4
TEXTS, UNSAFE = marked_texts(60)
READS: tuple[Read, ...] = (
    CaptureSpec((0, 2)),
    CaptureSpec((-1,)),
    CaptureSpec((1,), positions="user", pool="mean"),
    CaptureSpec((-2, 0), positions="user", pool="mean"),
    CaptureSpec((3, 1), positions="user"),
    CaptureSpec((2,), positions="user"),
    Texts(),
)


def test_captures_that_differ_in_layers_alone_are_made_once() -> None:
    shared = SharedReads.of(READS, num_blocks=NUM_BLOCKS)
    assert shared.reads == (
        CaptureSpec((0, 2, 3)),
        CaptureSpec((0, 1, 2), positions="user", pool="mean"),
        CaptureSpec((1, 2, 3), positions="user"),
        Texts(),
    )


def test_each_detector_gets_what_a_capture_of_its_own_would_give() -> None:
    engine = FakeEngine()
    shared = SharedReads.of(READS, num_blocks=NUM_BLOCKS)
    together = read_texts(engine, shared.reads, TEXTS)
    cut = shared.cut(together, READS)
    alone = read_texts(engine, READS, TEXTS)
    assert list(cut.values) == list(READS)
    for read in READS:
        for found, expected in zip(cut.values[read], alone.values[read], strict=True):
            assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_read_that_nobody_shares_is_left_as_it_is() -> None:
    reads = (CaptureSpec((-1, 0)),)
    assert SharedReads.of(reads, num_blocks=NUM_BLOCKS).reads == reads


def fitted(detector: Detector) -> tuple[Detector, Readings]:
    readings = read_texts(FakeEngine(), detector.reads, TEXTS)
    return detector.fit(readings, targets_of(UNSAFE), seed=0), readings


def test_the_layers_of_a_linear_detector_add_up_to_its_score() -> None:
    detector, readings = fitted(Linear((CaptureSpec((0, -1)),)))
    values = layer_values(detector, readings)
    rest = detector.decision_function(readings) - values.sum(axis=1)
    assert values.shape == (60, 2)
    assert rest == pytest.approx([rest[0]] * 60, abs=1e-6)


def test_the_layers_of_a_layered_method_each_tell_the_labels_apart() -> None:
    detector, readings = fitted(LayeredPrototypes(LayeredPrototypes.default_reads(NUM_BLOCKS)))
    values = layer_values(detector, readings)
    assert values.shape == (60, len(levels_of(detector, num_blocks=NUM_BLOCKS)))
    assert (values[UNSAFE].mean(axis=0) > values[~UNSAFE].mean(axis=0)).all()


def test_layers_are_counted_from_the_first_block() -> None:
    detector, _ = fitted(Linear((CaptureSpec((0, -1)),)))
    assert levels_of(detector, num_blocks=NUM_BLOCKS) == (
        Level(0, "last block_out"),
        Level(3, "last block_out"),
    )


def test_a_detector_that_reads_no_layers_has_none() -> None:
    detector, _ = fitted(Length(Length.default_reads(NUM_BLOCKS)))
    assert levels_of(detector, num_blocks=NUM_BLOCKS) == ()
