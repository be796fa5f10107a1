"""The same seed on the same machine: the same bits, from Python and from the command line."""

import os
import subprocess
import sys

import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.engine import Engine

import anomalib_defend.models  # noqa: F401 - the bare name, also where the package is not installed
from anomalib_defend import SemanticVOC


@pytest.fixture
def from_python(make_model, make_engine, voc):
    def run(seed, num_workers):
        data = SemanticVOC(voc, category="dog", train_batch_size=4, eval_batch_size=4, num_workers=num_workers)
        engine = make_engine()
        model = make_model(seed=seed)
        engine.fit(model, datamodule=data)
        return result(engine, model, data)

    return run


@pytest.fixture
def from_command_line(voc, tmp_path):
    def run(seed, num_workers):
        cli = AnomalibCLI([
            "fit", "--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--model.pre_trained", "false",
            "--model.image_size", "32", "--model.student_lr", "1e-3", "--model.dense_epochs", "1",
            "--model.distill_epochs", "2", "--model.seed", str(seed), "--data", "anomalib_defend.SemanticVOC",
            "--data.root", str(voc), "--data.category", "dog", "--data.train_batch_size", "4",
            "--data.eval_batch_size", "4", "--data.num_workers", str(num_workers),
            "--default_root_dir", str(tmp_path / "cli"), "--trainer.accelerator", "cpu", "--trainer.devices", "1",
            "--trainer.enable_progress_bar", "false",
        ])  # fmt: skip
        return result(cli.engine, cli.model, cli.datamodule)

    return run


def result(engine: Engine, model, data):
    """Weights, threshold and scale, and the raw scores of the test images."""
    batches = engine.predict(model, datamodule=data)
    return {**model.state_dict(), "scores": torch.cat([batch.raw_score for batch in batches])}


def differing(first, second):
    return {name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_gives_the_same_bits(from_python, from_command_line, num_workers):
    first = from_python(7, num_workers)
    torch.rand(3)  # what happened before does not matter
    assert not differing(first, from_python(7, num_workers))
    assert not differing(first, from_command_line(7, num_workers))
    torch.rand(5)
    assert not differing(first, from_command_line(7, num_workers))
    assert "scores" in differing(first, from_command_line(8, num_workers))


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
