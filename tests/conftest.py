"""A miniature of Pascal VOC, and the real data where it is at hand."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import settings

import miniatures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# HYPOTHESIS_PROFILE=thorough looks longer; both try the same cases in every run
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=500, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# the models are tiny: threads that wait for each other on a busy machine cost more than they bring
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """An installed Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``, a process for each file, each model of ``test_every_model.py``, and all of ``scoring``.

    The files of ``scoring`` share a model's export, which takes longer than most of its tests.
    Marks do not do it: pytest 9.2 does not show xdist 3.8 the groups.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file.startswith("tests/scoring/"):
                return "tests/scoring"
            row = test.partition("[")[2].rstrip("]").partition("-")[0]  # what follows are other parameters
            return f"{file} {row}" if file.endswith("test_every_model.py") else file

    return ByModel(config, log)
