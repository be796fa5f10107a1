"""Scores of fewer bits than float32 has: what rounding changes is measured, and labels that it changes are counted.

They hold on every processor: one without bf16 computes the hint in float32, where nothing moves.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from PIL import Image

import encoders
from anomalib_defend import DN2, SemanticFolder
from anomalib_defend.benchmark.machine import describe
from anomalib_defend.decision.models import Export
from anomalib_defend.scoring.exported import ExportedScorer, is_coarse, rounding
from anomalib_defend.scoring.judges import FLOAT32_MARGIN, MARGIN, margin
from anomalib_defend.scoring.models import MEASURED, Model
from anomalib_defend.scoring.undecided import COARSE, Undecided
from rounding import rounding as order_of_sums

pytest.importorskip("openvino")
AMX = "amx_bf16" in describe(1)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A model of images that differ by noise alone, whose distances are small differences, and its images."""
    folder = tmp_path_factory.mktemp("alike")
    rng = np.random.default_rng(0)
    image = rng.integers(40, 200, (32, 32, 3))
    for name, noise in (("dog", 3), ("cat", 40)):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(60):
            noisy = image + rng.integers(-noise, noise + 1, image.shape)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / "data" / name / f"{index:02d}.png")
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    engine = Engine(default_root_dir=folder / "run", accelerator="cpu", devices=1, **quiet)
    data = SemanticFolder(folder / "data", "dog", num_workers=0, val_split_ratio=0.5)
    engine.fit(DN2(encoders.MINIATURE, pre_trained=False), datamodule=data)
    xml = DN2.load_from_checkpoint(engine.best_model_path, map_location="cpu").to_openvino(folder)
    return xml, [str(path) for path in sorted((folder / "data" / "dog").iterdir())]


def raw_scores(export: Export, paths: list[str], hint: str, size: int, parallel: int = 2) -> np.ndarray:
    scorer = ExportedScorer(export, None, hint, maps=False, parallel=parallel)
    images = [scorer.prepare(path) for path in paths]
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    scores = [scorer.score([""] * len(part), part).raw_score.numpy() for part in parts]
    return np.concatenate(scores).astype(np.float64)


@pytest.mark.parametrize("hint", ["bf16", "f32"])
def test_labels_that_another_batch_or_precision_changes_are_counted(alike, hint) -> None:
    xml, paths = alike
    export = Export(xml)
    calibration, measured = export.calibration(), rounding(export, hint, paths[:MEASURED])
    near = Undecided.around(calibration, coarse=is_coarse(export, hint), rounding=measured)
    scores = np.array([raw_scores(export, paths, *how) for how in (("f32", 1), (hint, 1), (hint, 8), (hint, 30))])
    labels = scores > calibration.label_threshold
    changed = (labels != labels[0]).any(0)
    assert near.count(scores[:, changed].reshape(-1)) == changed.sum() * len(scores)
    assert np.abs(scores - scores[0]).max() <= max(measured, order_of_sums(24))
    if hint == "bf16" and AMX:
        assert measured > COARSE * abs(calibration.label_threshold)  # a share of the threshold is no bound


def test_what_cannot_be_read_measures_nothing(alike, tmp_path) -> None:
    xml, paths = alike
    export, bad = Export(xml), str(tmp_path / "bad.png")
    Path(bad).write_text("no image")
    assert rounding(export, "bf16", [bad, *paths[:7]]) == rounding(export, "bf16", paths[:7])
    assert (rounding(export, "bf16", paths[:7]) > 0) >= AMX
    assert rounding(export, "bf16", [bad]) == 0
    assert rounding(export, "f32", paths[:7]) == 0


def test_score_counts_by_what_it_measures(alike, rows, capsys, monkeypatch) -> None:
    xml, paths = alike
    asked = []
    monkeypatch.setattr(Model, "rounding", lambda _, first: asked.append(first) or 10.0)
    rows(xml, *paths, hint="bf16")
    assert asked == [paths[:MEASURED]]
    assert f"Labels of {len(paths)} images may change" in capsys.readouterr().out
    rows(xml, *paths, hint="f32", out="f32.csv")
    assert asked[1:] == [paths[:1]]


def test_the_first_view_stops_no_nearer_than_what_is_measured(alike) -> None:
    calibration = Export(alike[0]).calibration()
    assert margin(calibration, 0.0, coarse=False) == FLOAT32_MARGIN
    assert margin(calibration, 0.0, coarse=True) == MARGIN
    raw = np.linspace(0, 3 * calibration.image.threshold, 1000)
    for measured in (0.01, 0.1, 1.0):
        moved = calibration.image.scaled(raw + measured) - calibration.image.scaled(raw)
        assert moved.max() <= margin(calibration, measured, coarse=True) + 1e-6


@pytest.mark.slow
def test_weights_of_8_bits_and_several_batches_at_a_time(dn2, images, tmp_path) -> None:
    """OpenVINO 2026.4 reads memory that it has freed (docs/upstream.md)."""
    model = DN2.load_from_checkpoint(dn2.checkpoint, map_location="cpu")
    export = Export(model.to_openvino(tmp_path, compression_type=CompressionType.INT8))
    assert is_coarse(export, "f32")
    expected = raw_scores(export, images, "bf16", 8, parallel=1)
    np.testing.assert_allclose(expected, raw_scores(export, images, "f32", 8), rtol=0, atol=2**-6)  # of unit vectors
    for parallel in (2, 3):
        np.testing.assert_array_equal(raw_scores(export, images, "bf16", 8, parallel), expected)
