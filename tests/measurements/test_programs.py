"""Programs that print the documentation's figures, in a short form, from their arguments to the last line."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from anomalib.engine import Engine
from PIL import Image

from anomalib_defend import ObjectPrototypes, SemanticVOC
from anomalib_defend.example.encoder import WEIGHTS
from anomalib_defend.example.scenes import write_voc
from comparisons import make_scores, write_results
from encoders import MINIATURE

ROOT = Path(__file__).parents[2]
ENCODER = "vit_digits_patch8_96"
FEW_SCENES = partial(write_voc, num_train=40, num_test=8)


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """Run a program in this process, with changed constants, and return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)

    def run(name, *arguments, **constants):
        module = import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def tables(printed):
    """The tables by the first cell of their heads: of each row its first cell, and the others."""
    found, rows = {}, None
    for line in printed.splitlines():
        if not line.startswith("|"):
            rows = None
        elif set(line) <= set("|-: "):
            continue
        else:
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            if rows is None:
                rows = found.setdefault(first, {})
            else:
                rows[first] = others
    return found


def cells(printed, head):
    """The rows of the table that begins with ``head``."""
    return tables(printed)[head]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("measurements.billion", "--rate 19.7 --share 0.94", "| 4096 |"),
        ("measurements.reproduction", "--files voc", "| `voc` | 1,320 |"),
        ("measurements.reliability.thresholds", "--repetitions 3 --validation 19", "| 19 | any (theory) | 0.050 |"),
    ],
)
def test_a_calculation(program, name, arguments, expected):
    assert expected in program(name, *arguments.split())


@pytest.fixture
def export(tmp_path):
    """An exported model that is not trained."""
    pytest.importorskip("openvino")
    return import_module("measurements.scoring").make_model("DN2", MINIATURE).to_openvino(tmp_path)


@pytest.mark.slow
def test_deployment(program, export, voc):
    images = voc / "JPEGImages"
    printed = program("measurements.deployment", "--xml", export, "--images", images, "--count", 4, "--rounds", 1)
    rows = [ast.literal_eval(line.partition(" ")[2]) for line in printed.splitlines() if line.startswith("f32 {")]
    assert rows[0]["times"] == 1
    assert len(rows) == 3
    assert all(row["largest difference"] < 1e-5 for row in rows)
    assert not list(Path().rglob("*.blob"))  # no loop keeps compiled models unless it is asked to


@pytest.mark.slow
def test_scoring(program):
    pytest.importorskip("openvino")
    printed = program("measurements.scoring", "--images", 8, BACKBONES=(MINIATURE,))
    for model in ("Defend", "DN2"):
        found = cells(printed, f"{model}, {MINIATURE}")
        assert list(found)[:3] == ["loop over OpenVINOInferencer", "anomalib predict (torch)", "anomalib-defend score"]
        speed, times, share = (np.array([float(values[index]) for values in found.values()]) for index in range(3))
        assert min(speed) > 0
        np.testing.assert_allclose(times, speed / speed[0], rtol=0.02)
        np.testing.assert_allclose(share, speed / speed[-1], rtol=0.02)  # the last is the bound


@pytest.mark.slow
def test_the_first_view_first(program, tmp_path):
    pytest.importorskip("openvino")
    FEW_SCENES(tmp_path / "voc")
    arguments = ["--voc", tmp_path / "voc", "--weights", WEIGHTS, "--categories", "three", "--images", 20]
    printed = program("measurements.scoring", *arguments, BACKBONES=(ENCODER,))
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| three")]
    assert [(precision, count) for _, precision, count, *_ in rows] == [("f32", "20"), ("OpenVINO's own", "20")]
    for _, _, _, decided, passes, cost, _, not_counted in rows:
        assert 0 <= float(decided) <= 1
        assert float(passes) == pytest.approx(0.2 + 1 - float(decided), abs=0.01)  # of five views
        assert float(cost) > 0
        assert not_counted == "0"
    assert rows[0][-2] == "0"  # in float32 the labels are those of all views


@pytest.mark.slow
def test_batches(program, voc, tmp_path):
    pytest.importorskip("openvino")
    model = ObjectPrototypes(ENCODER, weights=WEIGHTS, image_size=32, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=SemanticVOC(voc, category="dog", num_workers=0))
    printed = program("measurements.batches", voc / "JPEGImages", engine.best_model_path, "--images", 9)
    _, _, single, *coarse = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert single[:2] == ["ObjectPrototypes", "f32"]
    assert float(single[2]) < 1e-5
    assert all(values[-1] == "0" for values in (single, *coarse))  # labels that change are counted as undecided


@pytest.mark.slow
def test_precision(program, voc):
    short = ["--image-size", 32, "--dense-epochs", 0, "--distill-epochs", 1, "--seeds", 0, "--trainings", "32"]
    printed = program("measurements.precision", "--root", voc, "--category", "dog", "--backbone", ENCODER, *short)
    assert "| trained 32, tested 32 |" in printed
    assert len(Path("runs/precision.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_picture_examples(program, tmp_path):
    short = {"backbone": ENCODER, "dense_epochs": 0, "distill_epochs": 1, "image_size": 32}
    config = {"model": {"init_args": short}, "data": {"init_args": {"category": "three"}}}
    program("measurements.picture_examples", "--to", tmp_path, CONFIG=config, write_voc=FEW_SCENES)
    for name in ("pictures", "picture_shapes"):
        assert Image.open(tmp_path / f"{name}.png").width > 200


@pytest.mark.slow
def test_nodes(program):
    printed = program("measurements.nodes", "--models", "DN2", write_voc=FEW_SCENES)
    assert "Both nodes have the same bits." in printed
    found = cells(printed, "DN2")
    (images,) = (name.split()[3] for name in found if name.startswith("test: rows of"))
    for name, values in found.items():
        if name.startswith("test: rows") or name == "test: different ones":
            assert values == [images, images]
        else:  # labels that differ, caches that are left, and numbers, which the order of summation moves
            assert float(values[1]) <= (0 if "labels" in name or "left" in name else 1e-4), name
    assert {"memory", "calibration: normal scores", "threshold and scale", "test: raw scores"} <= set(found)


@pytest.mark.slow
def test_cluster(tmp_path):
    """In a process of its own, since Ray reads its environment as it is imported; rates take more images than these."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "measurements.cluster", "--images", "256", "--turns", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = tables(done.stdout)[""]
    for name in ("rows lost", "rows twice", "rows in another place", "labels that differ"):
        assert found[name] == ["0"], name
    assert float(found["largest difference of raw scores"][0]) < 1e-5


@pytest.mark.slow
@pytest.mark.browser
def test_screenshots(program, voc, tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    for needed in ("playwright", "gradio"):
        pytest.importorskip(needed)
    model = ObjectPrototypes(MINIATURE, pre_trained=False)
    data = SemanticVOC(voc, category="dog", num_workers=0)
    engine = Engine(default_root_dir=tmp_path / "results", accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.train(model, datamodule=data)
    scores = {("DN2", "dog", 0): make_scores(0, 0.5), ("A", "dog", 0): make_scores(0, 1.5)}
    write_results(tmp_path / "comparison", scores, categories=("dog",), seeds=(0,))
    run = engine.trainer.default_root_dir
    program("measurements.screenshots", run, voc, tmp_path / "comparison", "--out", tmp_path)
    for name in ("report", "comparison", "app"):
        assert Image.open(tmp_path / f"{name}.png").width >= 1000
