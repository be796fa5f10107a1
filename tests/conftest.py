"""A miniature of Pascal VOC, and the real data where it is at hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import miniatures

# the models are tiny: threads that wait for each other on a busy machine cost more than they bring
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """A Trainer leaves LOCAL_RANK behind, and what starts two processes in a later test would wait for the second."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def write_voc() -> Callable[..., Path]:
    return miniatures.write_voc


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return miniatures.write_voc(tmp_path / "VOC2012")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the miniature data set of a datamodule, given by name, and return its root."""

    def write_data(name: str) -> Path:
        return miniatures.trust(monkeypatch, miniatures.WRITERS[name](tmp_path / name))

    return write_data


@pytest.fixture
def shared() -> Path:
    """The project's shared images and weights; the test is skipped where they are absent."""
    folder = os.environ.get("ANOMALIB_DEFEND_SHARED")
    if not folder or not (Path(folder) / "data" / "voc2012_animals.zip").is_file():
        pytest.skip("ANOMALIB_DEFEND_SHARED does not name a folder with the project's shared data")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup``, a file's tests share a process, as with ``loadfile``, where they name no group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
