"""CSV and Parquet, selection, pictures, and the command line."""

import csv
import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image
from tqdm import tqdm

from anomalib_defend.commands import main, make_parser
from anomalib_defend.commands import score as command
from anomalib_defend.decision import Calibration, Level, select
from anomalib_defend.decision.table import COLUMNS, read_table
from anomalib_defend.reporting.page import write_report
from anomalib_defend.scoring import finish, run
from anomalib_defend.scoring.judges import Judge
from anomalib_defend.visualization import picture_name
from anomalib_defend.visualization.picture import panels_of


def test_parquet_has_the_cells_of_the_csv(dn2, images, rows, tmp_path, monkeypatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(finish, "_ROWS", 8)
    (tmp_path / "images" / "bad.png").write_text("")
    expected = rows(dn2.checkpoint, tmp_path / "images", status=3, target_fdr=0.3)
    arguments = (dn2.checkpoint, [str(tmp_path / "images")], tmp_path / "out.parquet")
    with pytest.raises(FileExistsError, match=r"out.json is there, and describes out.csv"):
        run.score(*arguments, target_fdr=0.3)
    arguments = (*arguments[:2], tmp_path / "other.parquet")
    assert run.score(*arguments, target_fdr=0.3) == 3
    table = parquet.read_table(tmp_path / "other.parquet")
    assert table.column_names == [*COLUMNS, "selected"]
    assert parquet.ParquetFile(tmp_path / "other.parquet").num_row_groups == 3
    with (tmp_path / "out.csv").open(newline="") as file:
        for cells, found in zip(csv.DictReader(file), table.to_pylist(), strict=True):
            for name, text in cells.items():
                value = found[name]
                assert ("" if value is None else value if isinstance(value, str) else f"{value:.9g}") == text
    assert len(expected) == len(images) + 1
    assert {path.name for path in tmp_path.glob("o*")} == {"out.csv", "out.json", "other.json", "other.parquet"}


def test_without_pyarrow_it_is_said_before_anything_is_scored(dn2, images, rows, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'anomalib-defend\[parquet\]'"):
        rows(dn2.checkpoint, *images, out="out.parquet")
    with pytest.raises(ValueError, match=r"must end with .csv or .parquet"):
        rows(dn2.checkpoint, *images, out="out.xlsx")


def test_selected_are_those_of_the_procedure(dn2, images, rows, tmp_path) -> None:
    known = rows(dn2.checkpoint, *images, out="known.csv")
    most = [min(known, key=lambda row: row.p_value).path] * 30  # enough novel ones that some are selected
    found = rows(dn2.checkpoint, *images, *most, target_fdr=0.25)
    with (tmp_path / "out.csv").open(newline="") as file:
        marks = [cells["selected"] for cells in csv.DictReader(file)]
    chosen = select([row.p_value for row in found], 0.25)
    assert marks == ["yes" if each else "no" for each in chosen]
    assert 30 <= marks.count("yes") < len(found)


def test_pictures_elsewhere_are_found(dn2, images, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.score(dn2.checkpoint, ["images"], Path("results/out.csv"), maps=Path("maps")) == 0
    first, *_ = read_table(tmp_path / "results" / "out.csv")
    assert first.picture == f"{tmp_path.as_posix()}/maps/{picture_name(images[0])}"
    monkeypatch.chdir("images")
    assert write_report(tmp_path / "results" / "out.csv").pictures == len(images)


@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("export", marks=pytest.mark.slow)])
def test_pictures_are_where_the_table_says(objects, images, rows, tmp_path, kind) -> None:
    (tmp_path / "images" / "0.png").write_text("")
    found = rows(getattr(objects, kind), tmp_path / "images", status=3, maps=tmp_path / "maps")
    assert not found[0].picture
    for row in found[1:]:
        assert row.picture == f"maps/{picture_name(row.path)}"
        assert len(panels_of(Image.open(tmp_path / row.picture))) == 2  # image and map
    page = write_report(tmp_path / "out.csv")
    assert page.images == len(images)
    assert page.pictures == len(images)
    heading = "Prediction of ObjectPrototypes" if kind == "checkpoint" else "Prediction"  # an export has no name
    assert f"<h1>{heading}</h1>" in page.path.read_text()


def test_pictures_tell_the_threshold_of_an_export_with_a_sensitivity(tmp_path, monkeypatch) -> None:
    level = Level(1.0, 0.5, 0.5, (0.2, 0.4))
    scorer = SimpleNamespace(
        calibration=Calibration(0.2, level, sensitivity=0.4), prepare=None, batch_size=1, parallel=1
    )

    def score(paths, images):
        return ImageBatch(image=torch.stack(images), image_path=paths, pred_score=torch.tensor([0.55]))

    scorer.score = score
    told = []
    monkeypatch.setattr(
        "anomalib_defend.scoring.pictures.draw_picture", lambda image, finding, *_: told.append(finding)
    )
    monkeypatch.setattr("anomalib_defend.scoring.pictures.save", lambda *_: None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Judge(scorer, tmp_path / "maps", tmp_path).entries([str(tmp_path / "a.png")], [torch.zeros(3, 8, 8)])
    assert told[0].threshold == pytest.approx(0.6)


def test_the_bar_knows_how_many_images_there_are(dn2, images, rows, monkeypatch) -> None:
    shown = io.StringIO()

    class Bar(tqdm):
        def __init__(self, **options) -> None:
            super().__init__(**{**options, "file": shown, "disable": False})

        def close(self) -> None:
            end = time.monotonic() + 10
            while self.total is None and time.monotonic() < end:  # they are counted in a thread
                time.sleep(0.01)
            super().close()

    monkeypatch.setattr(run, "tqdm", Bar)
    rows(dn2.checkpoint, *images)
    last = shown.getvalue().split("\r")[-1]
    assert re.search(r"Scoring: 100%.* 21/21 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s", last), last


def test_a_checkpoint_without_calibration_scores_without_p_values(dn2, images, rows, monkeypatch, capsys) -> None:
    def no_calibration(_self):
        msg = "no normal validation scores"
        raise ValueError(msg)

    monkeypatch.setattr("anomalib_defend.decision.models.Checkpoint.calibration", no_calibration)
    found = rows(dn2.checkpoint, *images)
    assert all(row.score is not None and row.threshold is None for row in found)
    said = capsys.readouterr().out
    assert "Without p-values: no normal validation scores" in said
    assert "still valid" not in said
    with pytest.raises(ValueError, match=r"--target-fdr needs p-values\. no normal"):
        rows(dn2.checkpoint, *images, out="b.csv", target_fdr=0.2)


def test_the_command_line(dn2, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("null", "PNG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"null\0nowhere\0"))))
    assert main(["score", str(dn2.checkpoint), "-", "null", "--out", "new/out.csv", "--target-fpr", "0.2"]) == 3
    said = capsys.readouterr().out
    assert "3 images in" in said
    assert "Written: new/out.csv" in said
    assert main(["score", str(dn2.checkpoint), "nowhere", "--out", "out.csv"]) == 1
    assert "error: nowhere does not exist" in capsys.readouterr().err
    assert main(["score", str(dn2.checkpoint), "null", "--out", "out.csv", "--hint", "f32"]) == 1
    assert "is of OpenVINO" in capsys.readouterr().err


def test_a_keyboard_interrupt_says_how_to_go_on(monkeypatch, capsys) -> None:
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "score", interrupt)
    arguments = ["score", "model.xml", "images", "--out", "out.csv"]
    assert command.run(make_parser(arguments).parse_args(arguments).score) == 130
    assert "goes on from here" in capsys.readouterr().err
