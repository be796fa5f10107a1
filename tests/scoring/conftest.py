"""A trained model, its export, and folders of images."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine

import encoders
import miniatures
from anomalib_defend import DN2, ObjectPrototypes, SemanticFolder
from anomalib_defend.decision.table import Row, read_table
from anomalib_defend.scoring.run import score


class Trained:
    """A checkpoint, and its OpenVINO export, which takes ten times as long to make."""

    def __init__(self, model: Any, checkpoint: Path) -> None:
        self.model, self.checkpoint = model, checkpoint

    @cached_property
    def export(self) -> Path:
        pytest.importorskip("openvino")
        model = self.model.load_from_checkpoint(self.checkpoint, map_location="cpu")
        return model.to_openvino(self.checkpoint.parent)


def train(model: Any, folder: Path) -> Trained:
    root = miniatures.write_folder(folder / "data", ["cat", "dog"], 40)
    data = SemanticFolder(root, "dog", num_workers=0, val_split_ratio=0.6)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    engine = Engine(default_root_dir=folder / "run", accelerator="cpu", devices=1, **quiet)
    engine.fit(model, datamodule=data)
    return Trained(type(model), Path(engine.best_model_path))


@pytest.fixture(scope="session")
def dn2(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    return train(DN2(encoders.MINIATURE, pre_trained=False), tmp_path_factory.mktemp("dn2"))


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An ObjectPrototypes of five views."""
    torch.manual_seed(0)
    model = ObjectPrototypes(encoders.MINIATURE, pre_trained=False, views="whole+corners")
    return train(model, tmp_path_factory.mktemp("objects"))


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    return miniatures.write_images(tmp_path / "images", 21)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Row]]:
    """Score, and read the table."""

    def run(model: Path, *paths: object, status: int = 0, out: str = "out.csv", **options: Any) -> list[Row]:
        assert score(model, list(map(os.fspath, paths)), tmp_path / out, **options) == status
        return read_table(tmp_path / out)

    return run
