"""Scores are those of the engine, whatever the pipeline does; a bad image is a row."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomalib_defend import DN2, ObjectPrototypes
from anomalib_defend.decision.conformal import p_values
from anomalib_defend.decision.models import open_model
from anomalib_defend.files.names import from_text
from anomalib_defend.post_processing.description import description_path
from anomalib_defend.scoring import exported, resizes
from anomalib_defend.scoring.checkpoint import CheckpointScorer
from anomalib_defend.scoring.images import opened
from anomalib_defend.scoring.undecided import Undecided
from rounding import rounding


def engine_scores(model, paths):
    """Raw and scaled scores, image by image."""
    model.eval()
    with torch.inference_mode():
        raw = [model.model(model.pre_processor.transform(read_image(path, as_tensor=True))[None]) for path in paths]
        done = [model.post_processor(each) for each in raw]
    return [torch.cat([each.pred_score for each in values]).numpy() for values in (raw, done)]


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_rows_are_what_the_engine_says(dn2, images, rows, kind, tmp_path) -> None:
    found = rows(getattr(dn2, kind), tmp_path / "images", hint="f32" if kind == "export" else None)
    assert [row.path for row in found] == images
    model = DN2.load_from_checkpoint(dn2.checkpoint)
    raw, scaled = engine_scores(model, images)
    np.testing.assert_allclose([row.raw_score for row in found], raw, atol=1e-5)
    np.testing.assert_allclose([row.score for row in found], scaled, atol=1e-5)
    calibration = model.post_processor.calibration
    assert all(row.threshold == pytest.approx(calibration.label_threshold) for row in found)
    assert [row.label for row in found] == [score > 0.5 for score in scaled]
    np.testing.assert_allclose([row.p_value for row in found], p_values(raw, calibration.image.normal_scores))
    assert len({row.label for row in found}) + len({row.p_value for row in found}) > 3  # they tell images apart


def test_scores_are_those_of_the_inferencer(dn2, images, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = rows(dn2.export, *images, hint="f32")
    inferencer = OpenVINOInferencer(dn2.export, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = [inferencer.predict(path) for path in images]
    np.testing.assert_allclose([row.score for row in found], [each.pred_score.item() for each in expected], atol=1e-5)
    assert [row.label for row in found] == [bool(each.pred_label.item()) for each in expected]


def test_a_model_whose_resize_is_another_resizes_by_itself(dn2, images, rows, monkeypatch) -> None:
    expected = rows(dn2.export, *images, out="fast.csv", hint="f32")
    resized = resizes.resized
    monkeypatch.setattr(resizes, "resized", lambda image, size: resized(image, size).flip(-1))
    shapes = []
    prepare = exported.ExportedScorer.prepare
    monkeypatch.setattr(
        exported.ExportedScorer, "prepare", lambda self, path: shapes.append(prepare(self, path)) or shapes[-1]
    )
    found = rows(dn2.export, *images, out="slow.csv", hint="f32")
    assert len({tuple(image.shape) for image in shapes}) > 10  # their own sizes
    np.testing.assert_allclose([row.score for row in found], [row.score for row in expected], atol=1e-5)


def test_boxes_of_a_checkpoint_that_knows_them(objects, images, rows) -> None:
    found = rows(objects.checkpoint, *images)
    model = ObjectPrototypes.load_from_checkpoint(objects.checkpoint)
    np.testing.assert_allclose([row.raw_score for row in found], engine_scores(model, images)[0], atol=1e-5)
    assert all(row.box for row in found)


def test_boxes_of_files_whose_names_are_listed_in_another_form(objects, images, rows, tmp_path) -> None:
    (expected,) = rows(objects.checkpoint, images[0])
    named = tmp_path / "images" / "Stu\u0308ck.jpg"
    Path(images[0]).rename(named)
    (tmp_path / "list.txt").write_text(str(named.with_name("St\u00fcck.jpg")), encoding="utf-8")
    (found,) = rows(objects.checkpoint, tmp_path / "list.txt", out="list.csv")
    assert found.box == expected.box is not None


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_the_threshold_moves_and_scores_with_it(dn2, images, rows, kind, tmp_path) -> None:
    arithmetic = {"hint": "f32"} if kind == "export" else {}  # OpenVINO's own is bf16 on some processors
    found = rows(getattr(dn2, kind), *images, target_fpr=0.1, **arithmetic)
    model = DN2.load_from_checkpoint(dn2.checkpoint)
    model.set_target_fpr(0.1)
    np.testing.assert_allclose([row.score for row in found], engine_scores(model, images)[1], atol=1e-5)
    assert all(row.threshold == pytest.approx(model.post_processor.calibration.label_threshold) for row in found)
    assert '"target_fpr": 0.1' in description_path(tmp_path / "out.csv").read_text()


def test_bad_images_are_rows_in_their_place(dn2, tmp_path, rows, capsys) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    good = np.zeros((40, 40, 3), np.uint8)
    for name in ("a.png", "c.png", "f.png"):
        Image.fromarray(good).save(folder / name)
    (folder / "b.png").write_text("no image")
    (folder / "d.png").write_bytes(b"")
    (folder / "e.png").write_bytes((folder / "a.png").read_bytes()[:60])
    Image.fromarray(np.full((40, 40), 7000, np.uint16)).save(folder / "g.png")
    (folder / "h.png").symlink_to("nowhere")
    (folder / "notes.heic").write_text("")
    found = rows(dn2.export, folder, folder / "c.png", status=3)
    assert [Path(row.path).name for row in found] == [*(f"{letter}.png" for letter in "abcdefgh"), "c.png"]
    bad = {Path(row.path).name: row.error for row in found if row.error}
    assert sorted(bad) == ["b.png", "d.png", "e.png", "g.png", "h.png"]
    assert bad["d.png"] == "the file is empty"
    assert "16-bit" in bad["g.png"]
    assert "No such file" in bad["h.png"]
    assert all((row.score is None) == bool(row.error) for row in found)
    said = capsys.readouterr().out
    assert "9 images in" in said
    assert "5 with an error" in said
    assert "1 .heic" in said


def test_paths_that_the_system_refuses_are_rows(dn2, images, tmp_path, rows, monkeypatch) -> None:
    stat = os.stat

    def refuse(path, *arguments, **options):
        if "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)  # as in a folder that may not be entered; root may enter all
    paths = [images[0], f"{tmp_path}/{'x' * 300}.png", f"{tmp_path}/locked/a.png", images[1]]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    found = rows(dn2.checkpoint, tmp_path / "list.txt", status=3)
    assert [row.path for row in found] == paths
    assert "File name too long" in found[1].error
    assert found[2].error
    assert found[3].score is not None


def test_a_folder_is_listed_once_for_all_files_that_it_lacks(tmp_path, monkeypatch) -> None:
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    for index in range(50):
        assert opened(f"{tmp_path}/{index}.png") == f"{tmp_path}/{index}.png"
    assert listed == [str(tmp_path)]


def test_all_images_may_be_bad(dn2, tmp_path, rows) -> None:
    (tmp_path / "a.jpg").write_text("")
    assert [row.error for row in rows(dn2.export, tmp_path / "a.jpg", status=3)] == ["the file is empty"]


@pytest.mark.parametrize("name", ["St\udcfcck.png", "two\nlines.png", "=1+1.png", "日本 .png", "back\\x41slash.png"])
def test_any_file_name(dn2, tmp_path, rows, name, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    try:
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "images" / name)
    except OSError:
        pytest.skip("this file system does not take the name")
    (found,) = rows(dn2.export, "images")
    assert not found.error
    assert from_text(found.path) == f"images/{name}"
    monkeypatch.chdir("images")
    (found,) = rows(dn2.export, name, out="alone.csv")
    assert Path(from_text(found.path)) == Path(name)


def test_an_untrained_checkpoint_is_refused(dn2) -> None:
    with pytest.raises(RuntimeError, match="Cannot score images"):
        CheckpointScorer(DN2("vit_digits_patch8_96", pre_trained=False), None)
    assert os.fspath(dn2.export).endswith("model.xml")


@pytest.fixture(scope="module", params=["export", "checkpoint"])
def scorer(dn2, request):
    opened = open_model(getattr(dn2, request.param))
    if request.param == "checkpoint":
        return CheckpointScorer(opened.load(), opened.calibration())
    return exported.ExportedScorer(opened, opened.calibration(), "f32", maps=False, parallel=1)


@given(seed=st.integers(0, 2**32), count=st.integers(2, 9), contrast=st.floats(0, 1))
def test_in_float32_the_batch_changes_nothing_but_rounding(scorer, seed, count, contrast) -> None:
    images = list(contrast * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    for image in images:
        image.file_size = (32, 32)  # as `prepare` does
    together = scorer.score([""] * count, images)
    alone = [scorer.score([""], [image]) for image in images]
    raw = torch.cat([one.raw_score for one in alone])
    torch.testing.assert_close(together.raw_score, raw, rtol=0, atol=rounding(24))  # a distance of unit vectors
    near = Undecided.around(scorer.calibration, coarse=False)
    labels = torch.cat([one.pred_label for one in alone])
    moved = raw[labels != together.pred_label].double().numpy()
    assert near.count(moved) == len(moved)
