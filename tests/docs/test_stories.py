"""The commands and programs of the pages that a newcomer follows, run one after the other, on miniatures.

What is replaced stands in the tables: encoders, lengths and sizes. `test_command_lines.py` reads the commands of the
other pages.
"""

import shutil
from pathlib import Path

import pytest
from anomalib.cli.cli import AnomalibCLI
from PIL import Image
from safetensors.torch import save_file

import miniatures
from anomalib_defend import commands
from anomalib_defend.nn.vit import create_vit
from documents import Command, blocks, command_lines

ENCODER = ["--model.backbone", "vit_digits_patch8_96", "--model.image_size", "32"]
SMALL = {  # arguments of `train` and `fit` that come last, and win
    "Defend": [*ENCODER, "--model.dense_epochs", "0", "--model.distill_epochs", "1"],
    "ObjectPrototypes": ENCODER,
}
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
DATA = ["--data.num_workers", "0"]
PYTHON = {
    "Defend(seed=0)": "Defend('vit_digits_patch8_96', seed=0, image_size=32, dense_epochs=0, distill_epochs=1)",
    'ObjectPrototypes("deit_tiny_patch16_224")': "ObjectPrototypes('vit_digits_patch8_96', image_size=32)",
    "Engine()": "Engine(accelerator='cpu', devices=1)",
    '["dog", "cat"])': '["dog", "cat"], num_workers=0)',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a newcomer stands: data, a folder of images, weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)
    miniatures.write_voc(tmp_path / "VOC2012")
    miniatures.write_folder(tmp_path / "my_images", number=12)
    miniatures.write_folder(tmp_path / "some", categories=["folder"], number=5)
    for path in (tmp_path / "some" / "folder").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    save_file(create_vit("vit_digits_patch8_96", (96, 96)).state_dict(), tmp_path / "deit_tiny.safetensors")
    return tmp_path


def follow(command: Command, folder: Path) -> None:
    """Run a command; `model.ckpt` is the last checkpoint of its model, as the pages have it."""
    program, *arguments = command.words
    if any(argument.endswith("help") for argument in arguments):
        with pytest.raises(SystemExit, match="0"):
            commands.main(arguments) if program == "anomalib-defend" else AnomalibCLI(arguments)
    elif program == "anomalib-defend":
        assert commands.main(arguments) == 0
    else:
        (action, *_), data = arguments, DATA if "--data.root" in arguments else []
        model = arguments[arguments.index("--model") + 1]
        trains = action == "train" or (action == "fit" and "--ckpt_path" not in arguments)
        if "--ckpt_path" in arguments:
            shutil.copy(folder / f"{model}.ckpt", folder / "model.ckpt")
        run = AnomalibCLI([*arguments, *(SMALL[model] if trains else []), *data, *TRAINER])
        if trains:
            shutil.copy(run.engine.best_model_path, folder / f"{model}.ckpt")
            shutil.copy(run.engine.best_model_path, folder / "model.ckpt")


def follow_all(document: str, folder: Path) -> list[str]:
    followed = [
        command
        for command in command_lines()
        if command.document == document and command.words[0] in {"anomalib", "anomalib-defend"} and not command.inline
    ]
    for command in followed:
        follow(command, folder)
    return [command.words[1] for command in followed]


def run_programs(document: str) -> int:
    """Run the Python of a page, and count the programs."""
    programs = [block.code for block in blocks() if block.document == document and block.language == "python"]
    for program in programs:
        code = program
        for long, short in PYTHON.items():
            code = code.replace(long, short)
        exec(compile(code, document, "exec"), {})  # noqa: S102
    return len(programs)


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
def test_start_here(folder, monkeypatch):
    monkeypatch.setitem(
        SMALL, "Defend", [*SMALL["Defend"], "--data.max_train_images", "40", "--data.max_test_images", "8"]
    )
    assert follow_all("docs/index.md", folder) == ["example", "train", "report"]
    assert (folder / "results/Defend/SemanticVOC/three/latest/report.html").is_file()


@pytest.mark.slow
def test_your_images(folder, capsys):
    followed = follow_all("docs/your_images.md", folder)
    assert followed[:3] == ["train"] * 3
    assert {"test", "predict", "report", "export", "fit", "--help"} <= set(followed)
    assert (folder / "results/ObjectPrototypes/PredictFolder/latest/report.html").is_file()
    assert run_programs("docs/your_images.md") == 1


@pytest.mark.slow
def test_deployment(folder, capsys):
    of_the_page = (command for command in command_lines() if command.document == "docs/your_images.md")
    (training, *_) = (command for command in of_the_page if "Defend" in command.words)
    follow(training, folder)
    miniatures.write_folder(folder, categories=["new_normal_images"], number=20)
    shutil.copy(folder / "some" / "folder" / "00.jpg", folder / "photo.jpg")
    for command in command_lines():
        if command.document == "docs/deployment.md" and not command.inline and "INT8_PTQ" not in command.words:
            follow(command, folder)
    capsys.readouterr()
    assert run_programs("docs/deployment.md") == 3
    one, *many = [line.split() for line in capsys.readouterr().out.splitlines()][:6]
    assert one[1] in {"True", "False"}
    scores = {path: float(score) for path, score, _ in many}
    assert len(set(scores.values())) == 5
    assert scores["some/folder/00.jpg"] == pytest.approx(float(one[0]), abs=1e-3)  # the same image, alone
    assert all((verdict == "novel") == (float(score) > 0.5) for _, score, verdict in many)
