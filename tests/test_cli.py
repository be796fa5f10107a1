"""The command lines of the README, through anomalib's own command line."""

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from anomalib.cli.cli import AnomalibCLI
from PIL import Image
from safetensors.torch import save_file

import anomalib_defend.data  # the bare names, also where the package is not installed
import anomalib_defend.models
import forked
import miniatures
from anomalib_defend.decision import select
from anomalib_defend.nn.vit import create_vit

CONFIGS = Path(__file__).parent.parent / "configs"
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def anomalib(tmp_path, monkeypatch):
    """``anomalib ARGUMENTS`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)

    def run(*arguments):
        return AnomalibCLI([str(argument) for argument in arguments])

    return run


@pytest.fixture
def weights(tmp_path):
    """A local file with the weights of a small encoder, classifier included, as half precision."""
    vit = create_vit("vit_digits_patch8_96", (96, 96))
    state = {name: value.half() for name, value in vit.state_dict().items()}
    save_file(
        {**state, "head.weight": torch.zeros(10, 96), "head.bias": torch.zeros(10)}, tmp_path / "tiny.safetensors"
    )
    return "tiny.safetensors"


def test_train_test_predict(anomalib, voc, weights, tmp_path, caplog):
    data = ["--data", "SemanticVOC", "--data.root", voc, "--data.category", "dog"]
    small = ["--data.train_batch_size", "4", "--data.num_workers", "0"]
    with caplog.at_level(logging.INFO):
        train = anomalib(
            "train", "--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--model.weights", weights,
            "--model.dense_epochs", "1", "--model.distill_epochs", "2", "--model.image_size", "32",
            *data, "--data.setting", "uni_class", *small, *TRAINER,
        )  # fmt: skip
    assert train.engine.trainer.current_epoch == 3
    trained = train.engine.trainer.callback_metrics["image_AUROC"]
    ckpt = Path(train.engine.best_model_path)
    assert ckpt.is_relative_to(tmp_path / "results" / "Defend" / "SemanticVOC" / "dog")
    assert "Stage 1, dense fine-tuning: epoch 1 of 1." in caplog.text
    assert f"Trained: {ckpt}" in caplog.text
    root = Path(train.engine.trainer.default_root_dir)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("anomalib_defend")][-4:] == [
        f"Pictures: {root / 'images'}",
        f"Table: {root / 'test.csv'}",
        f"Checkpoint: {ckpt}",
        "Next: anomalib predict --data PredictFolder --data.root FOLDER_OF_YOUR_IMAGES --model Defend "
        f"--ckpt_path {ckpt}",
    ]
    listed = pd.read_csv(root / "test.csv").picture
    assert sorted(listed) == sorted(path.relative_to(root).as_posix() for path in (root / "images").rglob("*.png"))
    pictures = list((tmp_path / "results").rglob("images/**/*.png"))
    assert len(pictures) == 8
    assert Image.open(pictures[0]).width > Image.open(pictures[0]).height  # the image beside its heat map
    (tmp_path / weights).unlink()  # nothing but the checkpoint is needed from here on

    test = anomalib("test", "--model", "Defend", *data, "--data.num_workers", "0", "--ckpt_path", ckpt, *TRAINER)
    assert test.engine.trainer.callback_metrics["image_AUROC"] == trained
    assert test.model.model.image_size == (32, 32)

    predict = anomalib("predict", "--model", "Defend", "--data", voc / "JPEGImages", "--ckpt_path", ckpt, *TRAINER)
    assert predict.model.hparams.backbone == "vit_digits_patch8_96"
    table = pd.read_csv(Path(predict.engine.trainer.default_root_dir) / "predictions.csv")
    assert sorted(table.path) == sorted(map(str, (voc / "JPEGImages").iterdir()))
    assert table.score.between(0, 1).all()
    assert ((table.score > 0.5) == (table.label == "novel")).all()
    tested = pd.read_csv(Path(test.engine.trainer.default_root_dir) / "test.csv")
    assert set(tested.true_label) == {"normal", "novel"}
    assert tested.p_value.between(0, 1).all()
    assert "False alarms: " in caplog.text


def test_nearest_neighbours(anomalib, voc, weights):
    encoder = ["--model.backbone", "vit_digits_patch8_96", "--model.weights", weights, "--model.image_size", "32"]
    data = ["--data", "SemanticVOC", "--data.root", voc, "--data.category", "dog", "--data.num_workers", "0"]
    train = anomalib("train", "--model", "DN2", *encoder, *data, "--model.target_fpr", "0.5", *TRAINER)
    table = "--trainer.callbacks"  # in place of the one that every run writes
    test = anomalib(
        "test", "--model", "DN2", *data, "--ckpt_path", train.engine.best_model_path, "--model.target_fpr", "0.05",
        table, "anomalib_defend.post_processing.PredictionTable", f"{table}.novel_first", "true",
        f"{table}.target_fdr", "0.9", *TRAINER,
    )  # fmt: skip
    trained, tested = (run.engine.trainer.callback_metrics["image_AUROC"] for run in (train, test))
    assert trained == tested
    known = train.model.post_processor.calibration
    found = pd.read_csv(Path(test.engine.trainer.default_root_dir) / "test-1.csv")  # beside the training's test.csv
    assert found.threshold.unique() == pytest.approx([known.moved(0.05).image.threshold])  # 0.05 is the default's value
    assert found.raw_score.is_monotonic_decreasing
    assert (found.selected == "yes").tolist() == select(found.p_value, 0.9).tolist()
    (voc / "JPEGImages" / "broken.jpg").write_bytes(b"")
    predict = anomalib(
        "predict", "--model", "DN2", "--data", "PredictFolder", "--data.root", voc / "JPEGImages",
        "--data.num_workers", "0", "--ckpt_path", train.engine.best_model_path, *TRAINER,
    )  # fmt: skip
    found = pd.read_csv(Path(predict.engine.trainer.default_root_dir) / "predictions.csv")
    assert found.path.map(lambda path: Path(path).name).iloc[-1] == "broken.jpg"
    told = json.loads((Path(predict.engine.trainer.default_root_dir) / "predictions.json").read_text())
    assert told["normal"] == {"category": "dog", "categories": ["dog"], "setting": "uni_class"}
    assert found.error.notna().tolist() == [False] * (len(found) - 1) + [True]


def test_several_categories(anomalib, voc):
    run = anomalib(
        "train", "--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--model.pre_trained", "false",
        "--model.image_size", "[32,48]", "--data", "SemanticVOC", "--data.root", voc, "--data.category", "[dog,cat]",
        "--data.num_workers", "0", "--trainer.fast_dev_run", "true", *TRAINER,
    )  # fmt: skip
    assert run.datamodule.category == "cat_dog"
    assert run.model.model.image_size == (32, 48)


def test_unknown_category_is_refused(anomalib, voc):
    with pytest.raises(ValueError, match="zebra"):
        anomalib(
            "train", "--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--data", "SemanticVOC",
            "--data.root", voc, "--data.category", "zebra", *TRAINER,
        )  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_run(anomalib, voc, path, tmp_path):
    config = yaml.safe_load(path.read_text())
    data, arguments = config["data"], config["model"]["init_args"]
    category, root = data["init_args"]["category"], voc
    block = ["--model.init_args.attention_block", "5"] if "attention_block" in arguments else []  # of six
    if data["class_path"].endswith("SemanticFolder"):
        root = tmp_path / "folder"
        miniatures.write_folder(root)
    run = anomalib(
        "train", "--config", path, "--data.init_args.root", root, "--data.init_args.num_workers", "0",
        "--data.init_args.category", "dog" if category != "dog" else "cat",
        "--model.init_args.backbone", "vit_digits_patch8_96", *block, "--trainer.fast_dev_run", "true", *TRAINER,
    )  # fmt: skip
    assert run.model.trained_steps.all() or run.model.hparams.dense_epochs == 0


STOCK_MODEL = ["--model", "Padim", "--model.backbone", "resnet18"]


def test_every_datamodule_has_a_configuration_and_a_miniature():
    configured = {yaml.safe_load(path.read_text())["class_path"] for path in (CONFIGS / "data").glob("*.yaml")}
    names = set(anomalib_defend.data.__all__) - {"SemanticDataModule", "PredictFolder"}
    assert names == miniatures.WRITERS.keys()
    assert configured == {f"anomalib_defend.{name}" for name in names}


def first_quick(values, quick):
    """One of the values is tried each time, the others with the slow tests: a start of anomalib takes 10 seconds."""
    return [value if quick in str(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "path", first_quick(sorted((CONFIGS / "data").glob("*.yaml")), "folder"), ids=lambda path: path.name
)
def test_data_configurations_run_with_a_stock_model(anomalib, write, path):
    config = yaml.safe_load(path.read_text())
    arguments = ["--data.init_args.root", write(config["class_path"].rpartition(".")[2])]
    novel = config["init_args"].get("novel_dataset")
    if novel:
        root = write(novel["class_path"].rpartition(".")[2])
        arguments += ["--data.init_args.novel_dataset.init_args.root", root]
    run = anomalib(
        "train", *STOCK_MODEL, "--model.pre_trained", "false", "--data", path, *arguments,
        "--data.init_args.num_workers", "0", "--trainer.fast_dev_run", "true", *TRAINER,
    )  # fmt: skip
    data = run.datamodule
    assert data.train_data.has_normal
    assert not data.train_data.has_anomalous
    assert data.test_data.has_normal
    assert data.test_data.has_anomalous
    assert not set(data.train_data.samples.image_path) & set(data.test_data.samples.image_path)


CATEGORIES = {
    "SemanticVOC": "dog", "SemanticCOCO": "18", "SemanticCIFAR10": "[cat,5]", "SemanticCIFAR100": "people",
    "SemanticMNIST": "8", "SemanticFashionMNIST": "Sneaker", "SemanticFolder": "dog",
}  # fmt: skip


@pytest.mark.parametrize("name", first_quick(miniatures.WRITERS, "Folder"))
def test_bare_names_of_datamodules(anomalib, write, name):
    data = ["--data", name, "--data.root", write(name), "--data.category", CATEGORIES[name], "--data.num_workers", "0"]
    small = ["--data.max_train_images", "8", "--data.max_test_images", "4"]
    train = anomalib("train", *STOCK_MODEL, "--model.pre_trained", "false", *data, *small, *TRAINER)
    assert 0 <= train.engine.trainer.callback_metrics["image_AUROC"] <= 1
    ckpt = train.engine.best_model_path
    predict = anomalib("predict", *STOCK_MODEL, "--model.pre_trained", "false", *data, "--ckpt_path", ckpt, *TRAINER)
    assert predict.datamodule.name == name


def test_anomalib_benchmark(voc, tmp_path, monkeypatch):
    """In a process of its own: the pipeline gives all loggers a log file, and takes their handlers away."""
    monkeypatch.chdir(tmp_path)
    model = {"backbone": "vit_digits_patch8_96", "pre_trained": False, "image_size": 32, "distill_epochs": 1}
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {"class_path": "Defend", "init_args": {**model, "dense_epochs": {"grid": [0, 1]}}},
            "data": {"class_path": "SemanticVOC", "init_args": {"root": str(voc), "category": "dog", "num_workers": 0}},
        },
    }
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(config))
    forked.run(forked.anomalib, "benchmark", "--config", path)
    (table,) = (tmp_path / "runs" / "benchmark").rglob("results.csv")
    rows = pd.read_csv(table)
    assert len(rows) == 2
    assert rows.image_AUROC.between(0, 1).all()
