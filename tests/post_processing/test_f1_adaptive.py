"""anomalib's own post-processor as an option: its F1-adaptive threshold, from labelled novel validation images."""

from pathlib import Path

import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor

from anomalib_defend import Defend, SemanticVOC

TINY = {
    "backbone": "vit_digits_patch8_96",
    "image_size": 32,
    "dense_epochs": 0,
    "distill_epochs": 2,
    "student_lr": 1e-3,
}


@pytest.fixture
def data(voc):
    return SemanticVOC(voc, category="dog", num_workers=0, val_split_mode="same_as_test")


def f1(novel, labels):
    return 2 * (novel & labels).sum().item() / (novel.sum() + labels.sum()).item()


def test_the_threshold_has_the_best_f1_of_the_validation_images(data, tmp_path):
    model = Defend(**TINY, seed=0, post_processor=PostProcessor(), visualizer=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    assert model.post_processor.image_threshold.isfinite()
    (metrics,) = engine.test(model, datamodule=data)  # the validation images

    model.eval()
    with torch.inference_mode():
        samples = [(item.image, item.gt_label) for item in data.test_data]
        scores = torch.cat([model.model(model.pre_processor(image[None])).pred_score for image, _ in samples])
    labels = torch.stack([label for _, label in samples]).bool()
    assert 0 < labels.sum() < len(labels)
    threshold = model.post_processor.image_threshold
    slack = 1e-4  # images are scored one by one here
    assert f1(scores >= threshold - slack, labels) == max(f1(scores >= score, labels) for score in scores)
    # anomalib then labels what lies above its threshold, without the image that lies on it
    assert metrics["image_F1Score"] == pytest.approx(f1(scores > threshold + slack, labels))


@pytest.mark.slow
def test_from_the_command_line(voc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = [f"--model.{name}={value}" for name, value in TINY.items()]
    post_processor = ["--model.post_processor", "anomalib.post_processing.PostProcessor"]
    data = ["--data", "SemanticVOC", "--data.root", str(voc), "--data.category", "dog", "--data.num_workers", "0"]
    common = ["--model", "anomalib_defend.Defend", *post_processor, *data, "--trainer.accelerator", "cpu"]
    train = AnomalibCLI(["train", *common, *model, "--data.val_split_mode", "same_as_test"])
    assert type(train.model.post_processor) is PostProcessor
    trained = train.engine.trainer.callback_metrics
    (ckpt,) = Path("results").rglob("*.ckpt")
    test = AnomalibCLI(["test", *common, "--ckpt_path", str(ckpt)])
    assert test.model.post_processor.image_threshold == train.model.post_processor.image_threshold
    assert test.engine.trainer.callback_metrics["image_F1Score"] == trained["image_F1Score"]
