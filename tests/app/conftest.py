"""A trained model with a heat map, whose threshold moves among the images that are dropped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from PIL import Image

import miniatures
from anomalib_defend import ObjectPrototypes, SemanticVOC

TINY = {"backbone": "vit_digits_patch8_96", "image_size": 32, "pre_trained": False}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of different colours, so that no two have the same score."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> Path:
    """A folder with ``model.ckpt``; numbers between the images' scores stand for validation scores."""
    folder = tmp_path_factory.mktemp("trained")
    voc = miniatures.write_voc(folder / "VOC2012")
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    data = SemanticVOC(voc, category="dog", train_batch_size=4, eval_batch_size=4, num_workers=0)
    model = ObjectPrototypes(**TINY, visualizer=False)
    engine.fit(model, datamodule=data)
    model.eval()
    with torch.inference_mode():
        found = [model.model(model.pre_processor.transform(read_image(path, as_tensor=True)[None])) for path in images]
    maps = torch.stack([one.anomaly_map.squeeze() for one in found])
    scores = torch.tensor([one.pred_score.item() for one in found]).sort().values
    scores = scores + scores.diff(append=2 * scores[-1:] - scores[-2:-1]) / 2  # one is above all of them
    model.post_processor.calibrate(scores, maps.amax((1, 2)), maps.mean((1, 2)))
    engine.trainer.save_checkpoint(folder / "model.ckpt")
    return folder
