"""Nothing depends on the number of processes: every image once, in the data set's order."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset

import anomalib_defend
from anomalib_defend.post_processing.processes import DataOrder, gather


def positions_and_images(images, processes, batch_size, sampler):
    """What all processes keep: positions, and the images at them."""
    dataset, kept = TensorDataset(torch.arange(images)), []
    for rank in range(processes):
        source = SequentialSampler(dataset) if sampler is DistributedSamplerWrapper else dataset
        own = sampler(source, num_replicas=processes, rank=rank, shuffle=False)
        loader, order = DataLoader(dataset, batch_size, sampler=own), DataOrder()
        for _ in range(2):  # every epoch anew
            order.start()
            found = []
            for (numbers,) in loader:
                batch = ImageBatch(
                    image=torch.zeros(len(numbers), 3, 1, 1),
                    pred_score=numbers.float(),
                    image_path=[*map(str, numbers)],
                )
                batch.box = [(int(number), 0, 1, 1) for number in numbers]  # no field of anomalib's
                positions = order.keep_once(batch, loader)
                if positions:
                    assert len(batch.image) == len(batch.pred_score) == len(batch.image_path)
                    assert [box[0] for box in batch.box] == batch.pred_score.int().tolist()
                    found += zip(positions, batch.pred_score.int().tolist(), strict=True)
                else:
                    assert len(batch.image) == len(numbers)
        kept += found
    return sorted(kept)


@pytest.mark.parametrize("sampler", [DistributedSampler, DistributedSamplerWrapper, UnrepeatedDistributedSampler])
@given(images=st.integers(1, 30), processes=st.integers(1, 5), batch_size=st.integers(1, 7))
def test_every_image_once_in_the_data_sets_order(sampler, images, processes, batch_size) -> None:
    if sampler is UnrepeatedDistributedSampler and images < processes:
        return  # Lightning's own refuses that
    assert positions_and_images(images, processes, batch_size, sampler) == [(index, index) for index in range(images)]


def test_a_single_process_and_several_loaders() -> None:
    loaders = [DataLoader(TensorDataset(torch.arange(count)), 2) for count in (3, 4)]
    order = DataOrder()
    batches = [ImageBatch(image=torch.zeros(count, 3, 1, 1)) for count in (2, 1, 2, 2)]
    positions = [order.keep_once(batch, loaders, index) for batch, index in zip(batches, (0, 0, 1, 1), strict=True)]
    assert positions == [[0, 1], [2], [3, 4], [5, 6]]
    assert gather([1, 2]) == [1, 2]


SCRIPT = """
import json, sys, torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset
from anomalib_defend.post_processing import AUROC, F1Score, NormalQuantilePostProcessor, PredictionTable

torch.set_num_threads(1)
folder, devices = sys.argv[1], int(sys.argv[2])

class Data(Dataset):
    def __init__(self, count, novel): self.count, self.novel = count, novel
    def __len__(self): return self.count
    def __getitem__(self, index): return index
    def collate(self, numbers):
        values = torch.tensor([(7 * n % 11) / 11 + n / 1000 for n in numbers])
        return ImageBatch(image=values[:, None, None, None].expand(-1, 3, 2, 2).clone(),
                          gt_label=torch.tensor([n % 3 == 0 if self.novel else False for n in numbers]),
                          image_path=[f"{n}.png" for n in numbers])

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.post_processor = NormalQuantilePostProcessor(0.5)
        self.evaluator = Evaluator(test_metrics=[AUROC(["pred_score", "gt_label"], "image_"),
                                                 F1Score(["pred_label", "gt_label"], "image_", strict=False)])
    def configure_callbacks(self): return [self.post_processor, self.evaluator, PredictionTable()]
    def validation_step(self, batch, *_):
        batch.pred_score = batch.image.mean(dim=(1, 2, 3))
        return batch
    test_step = predict_step = validation_step

def loader(count, novel):
    data = Data(count, novel)
    return DataLoader(data, batch_size=2, collate_fn=data.collate)

model = Model()
trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                  default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False)
trainer.validate(model, loader(7, False), verbose=False)  # 4 images for the first process, 3 and a repeated one
(metrics,) = trainer.test(model, loader(9, True), verbose=False)
trainer.predict(model, loader(5, True))
state = {name: value.flatten().tolist() for name, value in model.post_processor.state_dict().items()}
if trainer.is_global_zero:
    with open(f"{folder}/result.json", "w") as file:
        json.dump({"metrics": metrics, "state": state}, file)
"""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    source = str(Path(anomalib_defend.__file__).parents[1])
    results = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        run = subprocess.run(
            [sys.executable, script, folder, str(devices)],
            env={**os.environ, "PYTHONPATH": source, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        assert sorted(path.name for path in folder.iterdir()) == [
            "predictions.csv", "predictions.json", "result.json", "test.csv", "test.json",
        ]  # fmt: skip
        results.append(
            [json.loads((folder / "result.json").read_text()).items()]
            + [(folder / f"{name}.csv").read_text() for name in ("test", "predictions")]
        )
    one, two = results
    assert dict(one[0])["metrics"] == pytest.approx(dict(two[0])["metrics"])
    assert one[1:] == two[1:]
    tables = [pd.read_csv(tmp_path / "2" / f"{name}.csv") for name in ("test", "predictions")]
    assert tables[0].path.tolist() == [f"{index}.png" for index in range(9)]
    assert tables[1].path.tolist() == [f"{index}.png" for index in range(5)]
    states = [dict(result[0])["state"] for result in results]
    assert len(states[0]["_image_normal_scores"]) == 7
    for name, value in states[0].items():
        assert value == pytest.approx(states[1][name], nan_ok=True), name
