"""The same seed on the same machine: the same bits, from Python and from the command line."""

import os
import subprocess
import sys

import pytest
import torch

import anomalib_defend.models  # noqa: F401 - the bare name, also where the package is not installed
from anomalib_defend import SemanticVOC


def differing(first, second):
    return {name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())}


def test_a_seed_that_was_drawn_repeats_the_run(make_model, make_data, make_engine, caplog):
    model, engine = make_model(seed=None), make_engine()
    with caplog.at_level("INFO"):
        engine.fit(model, datamodule=make_data())
    saved = torch.load(engine.best_model_path, weights_only=True)["hyper_parameters"]["seed"]
    assert f"seed={saved} was drawn" in caplog.text
    again, engine = make_model(seed=saved), make_engine()
    engine.fit(again, datamodule=make_data())
    assert not differing(model.state_dict(), again.state_dict())


def test_data_without_a_seed_are_warned_about(make_model, make_engine, voc, caplog):
    for seed in (0, None):
        data = SemanticVOC(voc, category="dog", train_batch_size=4, num_workers=0, seed=seed)
        make_engine(fast_dev_run=True).fit(make_model(), datamodule=data)
        assert ("give the datamodule a seed" in caplog.text) is (seed is None)


FIT = """
import sys, torch
from anomalib.engine import Engine
from anomalib_defend import Defend, SemanticVOC

voc, folder = sys.argv[1:]
model = Defend("vit_digits_patch8_96", pre_trained=False, dense_epochs=1, distill_epochs=1, student_lr=1e-3, seed=7)
data = SemanticVOC(voc, category="dog", train_batch_size=4, num_workers=0)
Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False).fit(model, datamodule=data)
torch.save(model.state_dict(), f"{folder}/state.pt")
"""


@pytest.mark.slow
def test_two_processes_with_all_their_threads_end_alike(voc, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    states = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        command = [sys.executable, "-c", FIT, str(voc), str(folder)]
        result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        states.append(torch.load(folder / "state.pt", weights_only=True))
    assert not differing(*states)
