"""Two processes train both stages and agree; resumed, they end where they would have."""

import os
import socket
import subprocess
import sys

import pytest
import torch

import anomalib_defend
from rounding import A_SHARE_OF_ADAMS_STEP

SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from anomalib_defend import Defend, SemanticVOC
import anomalib_defend.nn.dense_prototypes as prototypes

prototypes.HIDDEN_DIM = 32
import anomalib_defend.models.components.teacher_pass as teacher_pass
import anomalib_defend.models.defend.torch_model as torch_model

voc, out, strategy, dense_epochs, ckpt_path, cache = sys.argv[1:]
teacher_pass.CACHE_DTYPE = torch.float32
computed, teacher_output = [0], torch_model.DefendModel.teacher_output
def counted(self, images, attend=False):
    computed[0] += attend * len(images)
    return teacher_output(self, images, attend)
torch_model.DefendModel.teacher_output = counted
model = Defend("vit_digits_patch8_96", pre_trained=False, image_size=32, dense_epochs=int(dense_epochs),
               distill_epochs=2, student_lr=1e-3, visualizer=False, seed=0, teacher_cache=cache)
data = SemanticVOC(voc, category="dog", train_batch_size=4, eval_batch_size=4, num_workers=0)
engine = Engine(default_root_dir=out, accelerator="cpu", devices=2, strategy=strategy,
                enable_progress_bar=False, logger=False,
                callbacks=[ModelCheckpoint(dirpath=out + "/every", filename="{epoch}", save_top_k=-1)])
engine.fit(model, datamodule=data, ckpt_path=ckpt_path or None)
state = {name: value.cpu() for name, value in model.state_dict().items()}
state["val_score"] = engine.trainer.callback_metrics["val_score"]
state["computed"] = torch.tensor(computed)
torch.save(state, f"{out}/rank{engine.trainer.global_rank}.pt")
"""


@pytest.fixture
def train(voc, tmp_path):
    """Train with two processes; returns what each of them has in the end."""

    def _train(strategy, dense_epochs, ckpt_path="", cache="auto"):
        script = tmp_path / "train.py"
        script.write_text(SCRIPT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        source = os.path.dirname(os.path.dirname(anomalib_defend.__file__))  # noqa: PTH120
        environment = {**os.environ, "PYTHONPATH": source, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, script, voc, tmp_path, strategy, str(dense_epochs), str(ckpt_path), cache],
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    return _train


def differing(first, second):
    return {name for name in first if not torch.allclose(first[name], second[name], rtol=0, atol=0, equal_nan=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "dense_epochs"), [("ddp_find_unused_parameters_true", 1), ("ddp", 0)])
def test_two_processes_agree_and_resume(train, tmp_path, strategy, dense_epochs):
    first, second = train(strategy, dense_epochs)
    # 9 training images make 2 batches of 4 on each rank
    assert first["trained_steps"].tolist() == [2 * dense_epochs, 4]
    assert differing(first, second) <= {"computed"}
    assert first["post_processor._image_threshold"].isfinite()
    resumed, _ = train(strategy, dense_epochs, tmp_path / "every" / "epoch=0.ckpt")
    assert not differing(first, resumed)
    assert first["computed"] + second["computed"] == 9  # each image once


@pytest.mark.slow
def test_processes_share_the_cache_of_the_teacher_and_train_as_without(train, tmp_path):
    atol = A_SHARE_OF_ADAMS_STEP * 1e-3
    without = train("ddp", 0, cache="off")
    assert [rank["computed"].item() for rank in without] == [10, 10]  # 2 epochs of 5 images: one image twice
    for cache in ("ram", "disk"):
        ranks = train("ddp", 0, cache=cache)
        assert [rank["computed"].item() for rank in ranks] == [5, 4]
        for with_cache, expected in zip(ranks, without, strict=True):
            del with_cache["computed"]
            for name, value in with_cache.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=atol, equal_nan=True, msg=name)
    assert not list(tmp_path.rglob("teacher_cache"))
