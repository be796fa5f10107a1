"""A small Defend on miniature images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.engine import Engine

from anomalib_defend import Defend, SemanticVOC

TINY = {"backbone": "vit_digits_patch8_96", "pre_trained": False, "image_size": 32, "student_lr": 1e-3, "seed": 0}


@pytest.fixture(autouse=True)
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The projection head would be most of every checkpoint that is written."""
    monkeypatch.setattr("anomalib_defend.nn.dense_prototypes.HIDDEN_DIM", 32)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib's inferencer keeps there what OpenVINO compiles, which takes models of another precision for its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_model() -> Callable[..., Defend]:
    return lambda **kwargs: Defend(**{**TINY, "dense_epochs": 1, "distill_epochs": 2, **kwargs})


@pytest.fixture
def make_data(voc: Path) -> Callable[..., SemanticVOC]:
    defaults = {"category": "dog", "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return lambda **kwargs: SemanticVOC(voc, **{**defaults, **kwargs})


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Engine]:
    def make(**kwargs: Any) -> Engine:
        defaults = {"default_root_dir": tmp_path / "results", "accelerator": "cpu", "devices": 1}
        return Engine(**{**defaults, "enable_progress_bar": False, "enable_model_summary": False, **kwargs})

    return make
