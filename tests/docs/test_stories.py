"""The commands of every page that trains, and the programs of those that a newcomer follows: run, on miniatures."""

import shutil

import pytest
from every_model import SMALL_NETWORKS
from PIL import Image
from safetensors.torch import save_file
from stories import STORIES, follow, follow_all, run_programs
from timm import create_model

import miniatures
from anomalib_defend import commands
from anomalib_defend.decision.models import Export
from anomalib_defend.scoring.exported import is_coarse, rounding
from anomalib_defend.scoring.judges import margin
from documents import ROOT, Command, split
from encoders import MINIATURE

TRAINED = "anomalib train --model {} --data SemanticFolder --data.root my_images --data.category dog"
BEFORE = {  # the model of a page that goes on from a training, and the training's arguments
    "docs/thresholds.md": ("DN2",),
    "src/anomalib_defend/models/defend/README.md": ("Defend", "--trainer.max_epochs", "2"),  # of 3, as if killed then
}
TOLD = {"README.md", "docs/index.md", "docs/your_images.md", "docs/deployment.md"}  # below, each with what it leaves


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a newcomer stands: data, a folder of images, weights, and the files of a clone."""
    monkeypatch.chdir(tmp_path)
    for place, name, value in SMALL_NETWORKS:
        monkeypatch.setattr(place, name, value)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    miniatures.write_voc(tmp_path / "VOC2012")
    miniatures.write_voc(tmp_path / "datasets" / "VOC2012")
    miniatures.write_coco(tmp_path / "datasets" / "COCO")
    miniatures.trust(monkeypatch, miniatures.write_cifar10(tmp_path / "cifar10"))
    miniatures.write_folder(
        tmp_path / "my_images", number=60
    )  # of the tests' normal images a tenth may set the threshold
    for outliers in ("others", "cifar100_images"):
        miniatures.write_images(tmp_path / outliers / "clock", 4)
    miniatures.write_folder(tmp_path / "some", categories=["folder"], number=5)
    for path in (tmp_path / "some" / "folder").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    save_file(create_model(MINIATURE, num_classes=0).state_dict(), tmp_path / "deit_tiny.safetensors")
    return tmp_path


def train(folder, model, *arguments):
    follow(Command("a page before", (*split(TRAINED.format(model)), *arguments)), folder)


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted(STORIES - TOLD))
def test_a_page(document, folder):
    if document in BEFORE:
        train(folder, *BEFORE[document])
    assert follow_all(document, folder)


@pytest.mark.slow
def test_the_readme(folder, capsys):
    assert follow_all("README.md", folder) == ["train", "predict", "export", "train", "test", "export"]
    assert (folder / "results" / "weights" / "openvino" / "model.xml").is_file()
    assert list(folder.glob("results/Defend/SemanticVOC/dog/v0/weights/lightning/model.ckpt"))
    assert commands.main(["threshold", "model.ckpt", "--target-fpr", "0.1"]) == 0
    capsys.readouterr()
    assert run_programs("README.md") == 1
    assert "image_AUROC" in capsys.readouterr().out


@pytest.mark.slow
def test_start_here(folder):
    assert follow_all("docs/index.md", folder) == ["example", "train", "report"]
    assert (folder / "results/Defend/SemanticVOC/three/latest/report.html").is_file()


@pytest.mark.slow
def test_your_images(folder):
    followed = follow_all("docs/your_images.md", folder)
    assert followed[:3] == ["train"] * 3
    assert {"test", "predict", "report", "export", "fit", "--help"} <= set(followed)
    assert (folder / "results/ObjectPrototypes/PredictFolder/latest/report.html").is_file()
    assert run_programs("docs/your_images.md") == 1


@pytest.mark.slow
def test_deployment(folder, capsys):
    miniatures.write_folder(folder / "many", categories=["dog"], number=140)  # 8 bits want 100 to train on
    for path in (folder / "many" / "dog").iterdir():
        path.rename(folder / "my_images" / "dog" / f"many{path.name}")
    train(folder, "Defend")
    miniatures.write_folder(folder, categories=["new_normal_images"], number=20)
    shutil.copy(folder / "some" / "folder" / "00.jpg", folder / "photo.jpg")
    assert follow_all("docs/deployment.md", folder) == ["export", "export", "threshold", "export", "export"]
    capsys.readouterr()
    assert run_programs("docs/deployment.md") == 3
    one, *many = [line.split() for line in capsys.readouterr().out.splitlines()][:6]
    assert one[1] in {"True", "False"}
    scores = {path: float(score) for path, score, _ in many}
    assert len(set(scores.values())) == 5
    export = Export(folder / "results" / "weights" / "openvino" / "model.xml")
    measured = rounding(export, None, list(scores))  # 0 where OpenVINO's own precision is float32
    moves = margin(export.calibration(), measured, coarse=is_coarse(export, None))
    assert scores["some/folder/00.jpg"] == pytest.approx(float(one[0]), abs=moves)  # the same image, alone
    assert all((verdict == "novel") == (float(score) > 0.5) for _, score, verdict in many)
