"""A trained model with a heat map, as a checkpoint and as an export."""

from pathlib import Path

import pytest
from anomalib.engine import Engine

import miniatures
from anomalib_defend import ObjectPrototypes, SemanticVOC

TINY = {"backbone": "vit_digits_patch8_96", "image_size": 32, "pre_trained": False}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder: ``model.ckpt``, ``weights`` with the export, and ``VOC2012`` with images."""
    folder = tmp_path_factory.mktemp("trained")
    voc = miniatures.write_voc(folder / "VOC2012")
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    data = SemanticVOC(voc, category="dog", train_batch_size=4, eval_batch_size=4, num_workers=0)
    engine.fit(ObjectPrototypes(**TINY, visualizer=False), datamodule=data)
    engine.trainer.save_checkpoint(folder / "model.ckpt")
    return folder


@pytest.fixture(scope="session")
def images(trained: Path) -> list[Path]:
    return sorted((trained / "VOC2012").rglob("*.jpg"))[:6]
