"""``post_processor: false``: scores as they come, no labels, and no metric of labels."""

import pandas as pd
import pytest
import torch
from every_model import VIT, checkpoints, make_data, make_engine
from sklearn.metrics import roc_auc_score

import forked
from anomalib_defend import DN2
from rounding import rounding


@pytest.mark.parametrize("on_the_command_line", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_without_post_processor_has_scores_alone(tmp_path, monkeypatch, on_the_command_line) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "images")
    if on_the_command_line:
        command = "train --model DN2 --model.post_processor false --data SemanticFolder --data.root images"
        small = ["--data.category", "cat", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
        encoder = [f"--model.backbone={VIT['backbone']}", "--model.pre_trained=false", "--trainer.devices=1"]
        forked.run(forked.anomalib, *command.split(), *small, *encoder)
    else:
        model, engine = DN2(**VIT, post_processor=False), make_engine(tmp_path / "results")
        engine.fit(model, datamodule=data)
        (metrics,) = engine.test(model, datamodule=data, verbose=False)
        assert set(metrics) == {"image_AUROC"}
    (table,) = [pd.read_csv(path) for path in (tmp_path / "results").rglob("test.csv") if "latest" not in path.parts]
    model = DN2.load_from_checkpoint(checkpoints(tmp_path)[-1], post_processor=False).eval()
    data.setup()
    with torch.inference_mode():
        raw = [model.model(model.pre_processor(item.image[None])).pred_score.item() for item in data.test_data]
    assert table.score.tolist() == pytest.approx(raw, abs=rounding(24))  # distances of unit vectors
    assert table.label.isna().all()
    assert table.threshold.isna().all()
    if not on_the_command_line:
        expected = roc_auc_score([label == "novel" for label in table.true_label], table.score)
        assert metrics["image_AUROC"] == pytest.approx(expected, abs=1e-6)
