"""Every image of a folder is scored, the unusable ones are named, whatever the names."""

import os
import tempfile
from pathlib import Path

import pytest
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st
from names import file_names
from PIL import Image

from anomalib_defend import PredictFolder
from anomalib_defend.files.names import is_hidden
from miniatures import write_folder


def batches(root, **options):
    data = PredictFolder(root, num_workers=0, **options)
    data.prepare_data()
    data.setup("predict")
    return list(data.predict_dataloader())


def scored(*args, **options):
    return [path for batch in batches(*args, **options) for path in batch.image_path]


def test_every_image_once(tmp_path):
    root = write_folder(tmp_path / "Größe 日本")
    Image.new("RGB", (32, 40)).save(root / "loose.png")
    expected = sorted(str(path) for path in root.rglob("*.png"))
    found = batches(root, eval_batch_size=4)
    assert sorted(path for batch in found for path in batch.image_path) == expected
    assert len(expected) == 31
    assert isinstance(found[0], ImageBatch)
    assert found[0].gt_label is None


@pytest.mark.parametrize("name", ["Stück.png", os.fsdecode(b"St\xfcck.png")])
def test_an_image_alone(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert scored(tmp_path / name) == [str(tmp_path / name)]


def test_bad_files_are_all_named_and_left_out(tmp_path, caplog):
    root = write_folder(tmp_path / "images", number=5)
    bad = [root / "cat" / f"0{index}.png" for index in range(4)]
    for path in bad:
        path.write_bytes(b"" if path.name == "00.png" else b"nothing")
    (root / "dog" / "a.heic").write_bytes(b"photo")
    (root / "dog" / "._00.png").write_bytes(b"twin")
    assert len(scored(root)) == 11
    for path in bad:
        assert f"{path} (" in caplog.text
    assert "4 of 15 files are not usable images" in caplog.text
    assert "1 file(s) in" in caplog.text
    assert "1 .heic" in caplog.text
    with pytest.raises(OSError, match=r"03\.png \(cannot identify(.|\n)*on_error='skip'"):
        scored(root, on_error="raise")


def test_nothing_to_score(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is neither a folder nor a file"):
        scored(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="hold no image"):
        scored(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OSError, match=r"1 of 1 files are not usable images:\n.*a\.png \(the file is empty\)"):
        scored(tmp_path)
    with pytest.raises(ValueError, match="on_error must be one of raise, skip"):
        PredictFolder(tmp_path, on_error="ignore")


@given(st.sets(file_names, min_size=1, max_size=5))
def test_whatever_the_names(names):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            Image.new("RGB", (1, 1)).save(Path(folder, f"{name}.png"), format="PNG")
        expected = {str(Path(folder, f"{name}.png")) for name in names if not is_hidden(f"{name}.png")}
        if expected:
            assert set(scored(folder)) == expected


@pytest.mark.slow
def test_on_the_command_line(tmp_path, monkeypatch):
    """A folder whose name anomalib refuses, a file whose name is not UTF-8, and one that is broken."""
    from anomalib.cli.cli import AnomalibCLI
    from anomalib.models import Padim

    found = []
    monkeypatch.setattr(Padim, "on_predict_batch_end", lambda _, outputs, *rest: found.extend(outputs.image_path))
    monkeypatch.chdir(tmp_path)
    stock = [
        "--model",
        "Padim",
        "--model.backbone",
        "resnet18",
        "--model.pre_trained",
        "false",
        "--trainer.accelerator",
        "cpu",
    ]
    data = f"--data SemanticFolder --data.root {write_folder(tmp_path / 'mine')} --data.category dog".split()
    run = AnomalibCLI(["train", *stock, *data, "--data.num_workers", "0"])
    folder = write_folder(tmp_path / "größe", ["a", "b"], number=3)
    Image.new("RGB", (9, 9)).save(folder / os.fsdecode(b"St\xfcck.png"))
    (folder / "a" / "01.png").write_bytes(b"")
    data = ["--data", "PredictFolder", "--data.root", "größe", "--data.num_workers", "0"]
    AnomalibCLI(["predict", *stock, *data, "--ckpt_path", run.engine.best_model_path])
    names = ["a/00.png", "a/02.png", "b/00.png", "b/01.png", "b/02.png", "St\udcfcck.png"]
    assert sorted(found) == sorted(f"größe/{name}" for name in names)
