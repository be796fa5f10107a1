"""What a cell keeps of each test image."""

import os
from types import SimpleNamespace

import pandas as pd
import torch
from anomalib.data import ImageBatch

from anomalib_defend.benchmark.cell import SCORES, Measure
from anomalib_defend.files.names import from_text


def test_names_that_are_not_utf8(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [os.fsdecode(b"St\xfcck.png"), "Gr\u00f6\u00dfe.png", "a\\b.png"]
    batch = ImageBatch(
        image=torch.zeros(3, 3, 1, 1), image_path=paths, gt_label=torch.tensor([0, 1, 1]), pred_score=torch.rand(3)
    )
    measure, model = Measure(), torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    measure.on_test_start(None, model)  # type: ignore[arg-type]
    measure.on_test_batch_end(None, model, batch)  # type: ignore[arg-type]
    measure.on_test_end(SimpleNamespace(test_dataloaders=[]), model)  # type: ignore[arg-type]
    assert [from_text(path) for path in pd.read_csv(SCORES).image_path] == paths
