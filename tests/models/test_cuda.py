"""Every model on a CUDA device; `test_fake_cuda.py` looks for what can be found without one."""

from functools import partial

import pytest
import torch
from anomalib.deploy import OpenVINOInferencer
from every_model import ROWS, SMALL_NETWORKS, At, checkpoints, make_data, make_engine, state_of, stop, train

from anomalib_defend.nn.normality import NearestNeighbors
from forked import run_ranks

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    for place, name, value in SMALL_NETWORKS:
        monkeypatch.setattr(place, name, value)


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "images")


def scores(model, images):
    with torch.inference_mode():
        return model.eval()(images).pred_score.cpu()


@every_row
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_train_and_test(row, precision, data, tmp_path):
    model, engine = row.build(), make_engine(tmp_path, accelerator="cuda", precision=precision)
    engine.fit(model, datamodule=data)
    assert engine.trainer.strategy.root_device.type == "cuda"
    (metrics,) = engine.test(model, datamodule=data, ckpt_path=engine.best_model_path, verbose=False)
    assert 0 <= metrics["image_AUROC"] <= 1
    on_cpu = row.model.load_from_checkpoint(engine.best_model_path, map_location="cpu")
    assert scores(on_cpu, torch.rand(3, 3, 40, 36)).isfinite().all()


@every_row
def test_resume(row, data, tmp_path):
    """To the same weights, but for the order in which a device adds up."""
    model, engine = row.build(), make_engine(tmp_path / "whole", accelerator="cuda")
    engine.fit(model, datamodule=data)
    for epoch in range(1, engine.trainer.current_epoch):
        folder = tmp_path / str(epoch)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            make_engine(folder, accelerator="cuda", callbacks=[At(epoch, stop)]).fit(row.build(), datamodule=data)
        resumed = row.build()
        make_engine(folder, accelerator="cuda").fit(resumed, datamodule=data, ckpt_path=checkpoints(folder)[-1])
        torch.testing.assert_close(state_of(resumed), state_of(model), rtol=1e-3, atol=1e-4, equal_nan=True)


@every_row
def test_export(row, data, tmp_path):
    """From the device, as on the CPU."""
    model, images = row.build(), torch.rand(3, 3, 40, 36)
    engine = make_engine(tmp_path, accelerator="cuda")
    engine.fit(model, datamodule=data)
    xml = model.cuda().to_openvino(tmp_path / "export")
    outputs = OpenVINOInferencer(xml, config={"INFERENCE_PRECISION_HINT": "f32"}).model(images.numpy())
    expected = scores(row.model.load_from_checkpoint(engine.best_model_path, map_location="cpu"), images)
    torch.testing.assert_close(torch.from_numpy(outputs["pred_score"]).flatten(), expected, rtol=0, atol=1e-4)


def test_neighbours_are_those_of_the_cpu():
    """In float32, whatever autocast or TF32 would make of it."""
    memory, images = torch.rand(500, 64), torch.rand(20, 64)
    search = NearestNeighbors(64, 2)
    search.fit(memory)
    expected = search(images)
    with torch.autocast("cuda", torch.float16):
        found = search.cuda()(images.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


@every_row
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_devices(row, data, tmp_path):
    in_ranks = partial(train, accelerator="cuda", devices=2, strategy="ddp_find_unused_parameters_true")
    run_ranks(2, in_ranks, row.name, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", map_location="cpu") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
