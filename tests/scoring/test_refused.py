"""What cannot be done is said before anything is begun, and the right command is not in its way."""

import os

import pytest

from anomalib_defend import DN2
from anomalib_defend.commands import main
from anomalib_defend.scoring.inputs import Inputs
from miniatures import write_images


def test_a_wrong_option_begins_nothing(dn2, images, rows, tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"--hint int3 is no precision of OpenVINO's .*: give f32 or bf16"):
        rows(dn2.export, *images, hint="int3")
    with monkeypatch.context() as patch:
        patch.setattr(DN2, "require_training", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rows(dn2.checkpoint, *images)
    assert not list(tmp_path.glob("out*"))
    assert len(rows(dn2.export, *images, hint="f32")) == len(images)


def test_globs_and_folders_without_images_are_no_empty_tables(dn2, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "archive" / "2025", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "telephone.heic").write_text("")
    with pytest.raises(FileNotFoundError, match=r"archive/20\* finds folders alone.* leave out the quotes"):
        Inputs(["archive/20*"])
    assert list(Inputs(["archive/**"])) == ["archive/2025/000.jpg"]
    with pytest.raises(FileNotFoundError, match="no image in empty, but there are 1 in formats"):
        rows(dn2.checkpoint, "empty")
    assert not list(tmp_path.glob("out*"))


def test_addresses_of_tables_and_pictures_are_refused(dn2, images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["score", str(dn2.checkpoint), images[0]]
    for more in (["--out", "s3://bucket/a.csv"], ["--out", "a.csv", "--maps", "gs://bucket/maps"]):
        assert main([*command, *more]) == 1
        assert f"{' '.join(more[-2:])} is an address: give a path, or --engine ray" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_pictures_are_not_scored_themselves(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "maps/images", "maps2"):
        write_images(tmp_path / folder, 1)
    (tmp_path / "link").symlink_to("maps")
    for argument in (".", "**/*.jpg", str(tmp_path)):
        found = [os.path.relpath(path) for path in Inputs([argument], tmp_path / "link")]
        assert found == ["images/000.jpg", "maps2/000.jpg"]
    assert list(Inputs(["images"], tmp_path / "images" / "maps")) == ["images/000.jpg"]
    for scored in ("maps", "maps/images"):
        with pytest.raises(ValueError, match=f"would go into {scored}, which is scored: give --maps another"):
            Inputs([scored], tmp_path / "maps")
