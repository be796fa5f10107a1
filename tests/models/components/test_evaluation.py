"""What is validated counts once, whatever the number of processes."""

from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from every_model import ROWS, make_data, make_engine
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from anomalib_defend.models.components.evaluation import Evaluation
from anomalib_defend.post_processing.processes import DataOrder

IMAGES = 7


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_validation_score_is_the_mean_of_the_normal_images(processes: int, batch_size: int, labelled: bool) -> None:
    scores, labels = torch.arange(float(IMAGES)) ** 2, torch.arange(IMAGES) % 3 == 0
    logged = []
    for rank in range(processes):
        dataset = TensorDataset(scores, labels)
        sampler = DistributedSampler(dataset, processes, rank, shuffle=False) if processes > 1 else None
        loader = DataLoader(dataset, batch_size, sampler=sampler)
        model = SimpleNamespace(
            _order=DataOrder(),
            _is_fitting=True,
            trainer=SimpleNamespace(val_dataloaders=loader),
            predict_step=lambda batch: batch,
            log=lambda name, mean, batch_size, **_: logged.append((mean.item() * batch_size, batch_size)),
        )
        for _ in range(2):  # every epoch anew
            Evaluation.on_validation_epoch_start(model)
            for number, (score, label) in enumerate(loader):
                images = torch.zeros(len(score), 3, 1, 1)
                batch = ImageBatch(image=images, pred_score=score, gt_label=label if labelled else None)
                Evaluation.validation_step(model, batch, number)
    normal = scores[~labels] if labelled else scores
    assert sum(count for _, count in logged) == 2 * len(normal)
    assert sum(total for total, _ in logged) == pytest.approx(2 * normal.sum().item())


def test_a_training_logs_that_mean_whatever_its_batches(tmp_path) -> None:
    """In Lightning's own sums, which a mock of ``log`` does not show."""
    for batch_size in (2, 32):
        data = make_data(tmp_path / "images", val_split_ratio=0.6, eval_batch_size=batch_size)
        model, engine = next(row for row in ROWS if row.name == "MeanFeature").build(), make_engine(tmp_path)
        engine.fit(model, datamodule=data)
        scores = [model.model(model.pre_processor(item.image[None])).pred_score for item in data.val_data]
        assert len(scores) % 2
        assert len(scores) > 2
        expected = pytest.approx(torch.cat(scores).mean().item(), rel=1e-5)
        assert engine.trainer.callback_metrics["val_score"].item() == expected
