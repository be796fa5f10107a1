"""What several processes are told before one of them counts an image twice, or waits for another that has failed."""

import pytest
import torch
from every_model import ROWS
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from anomalib_defend.models.components.trainer_limits import check_processes


def make_trainer(devices=2, **kwargs):
    """It starts no process."""
    strategy = "ddp" if devices > 1 else "auto"
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, **kwargs)


def predicting(count, devices=2):
    trainer = make_trainer(devices)
    trainer.predicting = True
    loaders = [DataLoader(TensorDataset(torch.arange(number))) for number in (count, 5)]
    trainer.predict_loop._data_source.instance = loaders
    return trainer


def test_every_process_has_a_share_of_its_own():
    with pytest.raises(ValueError, match=r"use_distributed_sampler=false gives each of the 2 processes all images"):
        check_processes(make_trainer(use_distributed_sampler=False))
    check_processes(make_trainer(devices=1, use_distributed_sampler=False))
    check_processes(make_trainer())


def test_a_prediction_needs_an_image_for_each_process():
    with pytest.raises(ValueError, match=r"1 image\(s\) are too few for 2 processes: predict with fewer devices"):
        check_processes(predicting(1))
    check_processes(predicting(2))
    check_processes(predicting(1, devices=1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_model_looks_before_it_starts(row):
    model = row.build()
    model.trainer = make_trainer(use_distributed_sampler=False)
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(ValueError, match="use_distributed_sampler"):
            model.setup(stage)
