"""The table that a run writes, and what it says at its end."""

import json
import logging
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from torch.utils.data import DataLoader, Dataset

from anomalib_defend.decision import Calibration
from anomalib_defend.post_processing import NormalQuantilePostProcessor, PredictionTable
from anomalib_defend.post_processing.description import Run


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        is_global_zero=True, world_size=1, default_root_dir=tmp_path, test_dataloaders=None, predict_dataloaders=None
    )


def model_of(*scores, **kwargs):
    processor = NormalQuantilePostProcessor(**kwargs)
    processor.calibrate(torch.tensor(scores))
    return SimpleNamespace(post_processor=processor)


def run(table, trainer, model, scores, labels=None, stage="test"):
    """Two images a batch through post-processor and table."""
    getattr(table, f"on_{stage}_start")(trainer, model)
    for start in range(0, len(scores), 2):
        part = slice(start, start + 2)
        batch = ImageBatch(
            image=torch.zeros(len(scores[part]), 3, 2, 2),
            pred_score=torch.tensor(scores[part]),
            gt_label=None if labels is None else torch.tensor(labels[part]),
            image_path=[f"{start + index}.png" for index in range(len(scores[part]))],
        )
        if model.post_processor is not None:
            getattr(model.post_processor, f"on_{stage}_batch_end")(trainer, model, batch)
        getattr(table, f"on_{stage}_batch_end")(trainer, model, batch)
    getattr(table, f"on_{stage}_end")(trainer, model)
    table.teardown(trainer, model, stage)


def test_a_test_says_what_it_found_and_what_was_to_be_expected(trainer, tmp_path, caplog) -> None:
    model = model_of(*[index / 10 for index in range(9)], target_fpr=0.2)  # threshold 0.7
    with caplog.at_level(logging.INFO):
        run(PredictionTable(), trainer, model, [0.75, 0.1, 0.9, 0.65, 0.2], [0, 0, 1, 1, 0])
    assert "False alarms: 1 of 3 normal images (expected: 0.6, 95 % interval 0 to 2;" in caplog.text
    assert "Found: 1 of 2 novel images (expected: if they were no different, 0.4" in caplog.text
    assert caplog.messages[-1] == f"Table: {tmp_path / 'test.csv'}"
    table = pd.read_csv(tmp_path / "test.csv")
    assert table.path.tolist() == [f"{index}.png" for index in range(5)]
    assert table.label.tolist() == ["novel", "normal", "novel", "normal", "normal"]
    assert table.true_label.tolist() == ["normal", "normal", "novel", "novel", "normal"]
    assert table.p_value.tolist() == pytest.approx([0.2, 0.9, 0.1, 0.3, 0.8])
    assert table.raw_score.tolist() == pytest.approx([0.75, 0.1, 0.9, 0.65, 0.2])
    assert (table.threshold == table.threshold[0]).all()
    assert table.threshold[0] == pytest.approx(0.7)
    assert ((table.raw_score > table.threshold) == (table.label == "novel")).all()
    assert ((table.p_value <= 0.2 + 1e-9) == (table.label == "novel")).all()


def test_categories_come_from_the_data_set(trainer, tmp_path) -> None:
    class Two(Dataset):
        samples = pd.DataFrame({"categories": ["dog; person", "cat"]})

        def __len__(self):
            return 2

    trainer.test_dataloaders = [DataLoader(Two()), DataLoader(Two())]
    model, table = model_of(0.1, 0.2), PredictionTable()
    table.on_test_start(trainer, model)
    for loader in (0, 1):
        batch = ImageBatch(
            image=torch.zeros(2, 3, 2, 2), pred_score=torch.tensor([0.3, 0.1]), image_path=["a.png", "b.png"]
        )
        table.on_test_batch_end(trainer, model, batch, dataloader_idx=loader)
    table.on_test_end(trainer, model)
    assert pd.read_csv(tmp_path / "test.csv").categories.tolist() == 2 * ["dog; person", "cat"]


def test_the_box_that_a_model_has_found(trainer, tmp_path) -> None:
    table, model = PredictionTable(), model_of(0.1, 0.2)
    table.on_predict_start(trainer, model)
    batch = ImageBatch(
        image=torch.zeros(2, 3, 2, 2), pred_score=torch.tensor([0.3, 0.1]), image_path=["a.png", "b.png"]
    )
    batch.box = [(1.0, 2.0, 30.0, 40.5), None]
    table.on_predict_batch_end(trainer, model, batch)
    table.on_predict_end(trainer, model)
    assert pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False).box.tolist() == ["1 2 30 40.5", ""]


def test_normal_images_alone_have_false_alarms_but_nothing_to_find(trainer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(PredictionTable(), trainer, model_of(0.1, 0.2, target_fpr=0.5), [0.0, 0.3], [0, 0])
    assert "False alarms: 1 of 2 normal images" in caplog.text
    assert "Found" not in caplog.text


@pytest.mark.parametrize("processor", [NormalQuantilePostProcessor, PostProcessor])
def test_without_threshold_no_image_is_called_normal(trainer, tmp_path, caplog, processor) -> None:
    """anomalib's own compares with NaN, and labels every image normal."""
    model = SimpleNamespace(post_processor=processor())
    with caplog.at_level(logging.INFO):
        run(PredictionTable(), trainer, model, [0.3, 0.4], [0, 1])
        run(PredictionTable(), trainer, model, [0.3, 0.4], stage="predict")
    assert "False alarms" not in caplog.text
    assert "2 images have a score, and no label." in caplog.messages
    for name in ("test", "predictions"):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        assert table.score.notna().all() or processor is PostProcessor  # which scales by NaN
        assert table[["label", "p_value", "threshold"]].isna().all(axis=None)


@pytest.mark.parametrize("processor", [None, NormalQuantilePostProcessor()])
def test_nothing_is_selected_without_p_values(trainer, tmp_path, processor) -> None:
    with pytest.raises(ValueError, match=r"target_fdr=0\.1 selects by p-values\. The model holds no .* --calibrate"):
        PredictionTable(target_fdr=0.1).on_test_start(trainer, SimpleNamespace(post_processor=processor))
    assert not list(tmp_path.iterdir())


def test_a_model_with_a_threshold_alone_says_what_is_missing(trainer, tmp_path, caplog) -> None:
    """As a version without calibrations saved it."""
    model = model_of(0.1, 0.2)
    model.post_processor._image_normal_scores = torch.empty(0)
    with caplog.at_level(logging.INFO):
        run(PredictionTable(), trainer, model, [0.3], [0])
    assert "holds no normal validation scores" in caplog.text
    table = pd.read_csv(tmp_path / "test.csv")
    assert table[["p_value", "threshold"]].isna().all(axis=None)
    assert table.label.tolist() == ["novel"]


def test_without_post_processor_there_are_scores_alone(trainer, tmp_path) -> None:
    run(PredictionTable(), trainer, SimpleNamespace(post_processor=None), [0.3, 0.1, 0.2], stage="predict")
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table.score.tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert table.drop(columns=["path", "score"]).isna().all(axis=None)


def test_a_run_that_is_stopped_leaves_what_it_had(trainer, tmp_path) -> None:
    table, model = PredictionTable(), model_of(0.1, 0.2)
    table.on_predict_start(trainer, model)
    batch = ImageBatch(image=torch.zeros(1, 3, 2, 2), pred_score=torch.tensor([0.3]), image_path=["a.png"])
    model.post_processor.on_predict_batch_end(trainer, model, batch)
    table.on_predict_batch_end(trainer, model, batch)
    assert pd.read_csv(tmp_path / "predictions.csv").path.tolist() == ["a.png"]


def test_sorted_selected_and_with_errors(trainer, tmp_path, caplog) -> None:
    table = PredictionTable(novel_first=True, target_fdr=0.3)
    model = model_of(*[index / 100 for index in range(99)])
    with caplog.at_level(logging.INFO):
        run(table, trainer, model, [0.0, 2.0, 0.5], stage="predict")
    assert "target_fdr=0.3 selects 1 of 3 images." in caplog.messages
    found = pd.read_csv(tmp_path / "predictions.csv")
    assert found.path.tolist() == ["1.png", "2.png", "0.png"]
    assert found.selected.tolist() == ["yes", "no", "no"]
    with pytest.raises(ValueError, match="target_fdr="):
        PredictionTable(target_fdr=2)


@pytest.mark.parametrize("novel_first", [False, True])
def test_files_that_the_data_leave_out_are_named(trainer, tmp_path, novel_first, caplog) -> None:
    trainer.datamodule = SimpleNamespace(unusable={"broken.png": "the file is empty"})
    with caplog.at_level(logging.INFO):
        table = PredictionTable(novel_first, target_fdr=0.9 if novel_first else None)
        run(table, trainer, model_of(0.1, 0.2), [0.3, 0.4], stage="predict")
    found = pd.read_csv(tmp_path / "predictions.csv")
    assert found.path.tolist() == (["1.png", "0.png"] if novel_first else ["0.png", "1.png"]) + ["broken.png"]
    assert found.error.tolist()[-1] == "the file is empty"
    assert found.score.isna().tolist() == [False, False, True]
    assert "2 of 2 images are novel." in caplog.messages


def test_earlier_tables_stay(trainer, tmp_path) -> None:
    for _ in range(3):
        run(PredictionTable(), trainer, model_of(0.1, 0.2), [0.3], stage="predict")
    names = ["predictions-1", "predictions-2", "predictions"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{end}" for name in names for end in ("csv", "json")}


def test_what_was_run_is_beside_the_table(trainer, tmp_path) -> None:
    trainer.ckpt_path = tmp_path / "model.ckpt"
    trainer.datamodule = SimpleNamespace(
        root=tmp_path, category="dog", test_data=SimpleNamespace(samples=pd.DataFrame({"label_index": [0, 1, 1, -1]}))
    )
    model = model_of(0.1, 0.2)
    model.hparams, model.run_seed = {"backbone": "deit", "weights": None, "pre_processor": object()}, 7
    run(PredictionTable(), trainer, model, [0.3])
    content = json.loads((tmp_path / "test.json").read_text())
    assert content["arguments"] == {"backbone": "deit"}
    assert content["data"] == {
        "name": "SimpleNamespace", "root": str(tmp_path), "category": "dog",
        "splits": {"test": {"normal": 1, "novel": 2, "unknown": 1}},
    }  # fmt: skip
    assert (content["seed"], content["checkpoint"]) == (7, str(tmp_path / "model.ckpt"))
    assert content["command"] is None  # this is no command line
    assert {"Python", "anomalib", "torch"} <= content["versions"].keys()
    assert Calibration.from_content(content["calibration"]) == model.post_processor.calibration


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/x/bin/anomalib", "anomalib test 'a b'"),
        ("/x/anomalib_defend/__main__.py", "python -m anomalib_defend test 'a b'"),
        ("/x/bin/pytest", None),
    ],
)
def test_the_command_can_be_run_again(monkeypatch, program, command) -> None:
    monkeypatch.setattr("sys.argv", [program, "test", "a b"])
    assert Run().content()["command"] == command


def test_sensitivity_moves_the_threshold_of_the_table(trainer, tmp_path) -> None:
    model = model_of(*[index / 10 for index in range(9)], target_fpr=0.2, image_sensitivity=0.7)
    run(PredictionTable(), trainer, model, [0.75, 0.1, 0.62, 0.65, 0.2], [0, 0, 1, 1, 0])
    table = pd.read_csv(tmp_path / "test.csv")
    assert ((table.raw_score > table.threshold) == (table.label == "novel")).all()
    assert table.threshold[0] < 0.7
