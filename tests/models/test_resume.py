"""A resumed training ends where the uninterrupted one does; checkpoints survive whatever stops a run."""

import random

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import Callback, EarlyStopping

EPOCHS = {"dense_epochs": 2, "distill_epochs": 2}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())]
    assert not different


def scores(engine, model, data):
    return [score for batch in engine.predict(model, datamodule=data) for score in batch.raw_score.tolist()]


@pytest.fixture
def every_epoch(tmp_path):
    return ModelCheckpoint(dirpath=tmp_path / "every", filename="{epoch}", save_top_k=-1)


class Draws(Callback):
    """Records the images of every step, and what the random generators give next."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        next_ones = (torch.get_rng_state().sum().item(), np.random.get_state()[1].sum(), random.getstate())  # noqa: NPY002
        self.steps.append((trainer.current_epoch, tuple(batch.image_path), next_ones))


@pytest.mark.parametrize(("num_workers", "seed", "epochs"), [(0, 3, [0, 1, 2]), (2, None, [1])])
def test_resuming_after_any_epoch_gives_the_same_weights_and_scores(
    make_model, make_data, make_engine, every_epoch, tmp_path, num_workers, seed, epochs
):
    data = {"num_workers": num_workers}
    whole, draws = make_model(**EPOCHS, seed=seed), Draws()
    engine = make_engine(callbacks=[every_epoch, draws])
    engine.fit(whole, datamodule=make_data(**data))
    expected = scores(engine, whole, make_data(**data))
    for epoch in epochs:
        model, again = make_model(**EPOCHS, seed=seed), Draws()
        engine = make_engine(callbacks=[again])
        engine.fit(model, datamodule=make_data(**data), ckpt_path=tmp_path / "every" / f"epoch={epoch}.ckpt")
        assert again.steps == [step for step in draws.steps if step[0] > epoch]
        assert_equal(state(model), state(whole))
        assert scores(engine, model, make_data(**data)) == expected


def test_the_default_checkpoint_is_of_the_last_epoch(make_model, make_data, make_engine, tmp_path):
    kept = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, *args):
            paths = sorted((tmp_path / "results").rglob("*.ckpt"))
            kept.append([(path.name, torch.load(path, weights_only=True)["epoch"]) for path in paths])

    make_engine(callbacks=[Look()]).fit(make_model(**EPOCHS), datamodule=make_data())
    assert kept == [[], [("model.ckpt", 0)], [("model.ckpt", 1)], [("model.ckpt", 2)]]


def test_stage_2_keeps_no_optimizer_state_of_stage_1(make_model, make_data, make_engine, every_epoch, tmp_path):
    model = make_model()
    make_engine(callbacks=[every_epoch]).fit(model, datamodule=make_data())
    saved = [torch.load(tmp_path / "every" / f"epoch={epoch}.ckpt", weights_only=True) for epoch in (0, 1)]
    rates = [[group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]] for checkpoint in saved]
    assert rates == [[1e-5, 1e-4], [1e-3, 1e-3]]


def test_an_engine_trains_and_validates_after_an_error_in_stage_1(make_model, make_data, make_engine):
    class FailOnce(Callback):
        failed = False

        def on_train_batch_end(self, *args):
            if not self.failed:
                self.failed = True
                raise KeyError

    stopping = EarlyStopping(monitor="val_score")
    engine = make_engine(callbacks=[FailOnce(), stopping], limit_val_batches=1)
    with pytest.raises(KeyError):
        engine.fit(make_model(), datamodule=make_data())
    assert engine.trainer.limit_val_batches == 1
    assert stopping in engine.trainer.callbacks
    model = make_model()
    engine.fit(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [3, 6]
    assert "val_score" in engine.trainer.callback_metrics


def test_a_checkpoint_of_the_weights_alone_is_not_resumed(make_model, make_data, make_engine, tmp_path):
    weights_only = ModelCheckpoint(dirpath=tmp_path / "weights", save_weights_only=True)
    engine = make_engine(callbacks=[weights_only])
    engine.fit(make_model(), datamodule=make_data())
    with pytest.raises(ValueError, match="saved with save_weights_only: it can be tested"):
        make_engine().fit(make_model(), datamodule=make_data(), ckpt_path=weights_only.best_model_path)
    make_engine().test(make_model(), datamodule=make_data(), ckpt_path=weights_only.best_model_path)


def test_train_with_a_checkpoint_says_that_the_old_weights_are_tested(
    make_model, make_data, make_engine, every_epoch, tmp_path, caplog
):
    make_engine(callbacks=[every_epoch]).fit(make_model(), datamodule=make_data())
    assert "are replaced by those of ckpt_path" not in caplog.text
    make_engine().train(make_model(), datamodule=make_data(), ckpt_path=tmp_path / "every" / "epoch=1.ckpt")
    assert "are replaced by those of ckpt_path" in caplog.text
