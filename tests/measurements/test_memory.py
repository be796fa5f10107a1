"""A smoke test of the programs that read the resident memory: small, but grown memory would show."""

import numpy as np
import pytest

from measurements.reliability.memory import MEASUREMENTS, Recorder, growth, measure, resident_mib
from measurements.reliability.soak import soak


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    monkeypatch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)


def test_memory_that_is_held_is_read():
    before = resident_mib()
    held = np.ones(2**27, dtype=np.uint8)
    assert resident_mib() - before == pytest.approx(held.nbytes / 2**20, abs=10)


def test_memory_is_read_whenever_enough_images_were_seen():
    recorder = Recorder(every=10)
    for _ in range(9):
        recorder.add("batches", 4)
    assert list(recorder.readings["batches"]) == [12, 20, 32]
    assert growth({10: 200.0, 20: 100.0, 30: 300.0}) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASUREMENTS[:-1])
def test_training_and_prediction(name):
    readings = measure(name, images=60, every=20)
    assert list(readings) == (["training, stage 1", "training, stage 2"] if name == "training" else [name])
    for values in readings.values():
        assert list(values) == [20, 40, 60]
        assert growth(values) < 0.1


@pytest.mark.slow
def test_openvino():
    pytest.importorskip("openvino")
    first, *_, last = soak(minutes=0.05, every=0.01)
    assert last.images > first.images > 0
    assert last.minutes >= 0.05
    assert last.mib / first.mib < 1.1
