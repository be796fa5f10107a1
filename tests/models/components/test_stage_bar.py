"""One bar for all stages of a training, which says where it is and how long is left."""

import re

import pytest
from anomalib.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar

from anomalib_defend.models.components import stage_bar
from anomalib_defend.models.components.progress import track
from anomalib_defend.models.components.stage_bar import StageProgressBar, TimeLeft


class Watcher(ModelCheckpoint):
    """Notes what the bar says; as a checkpoint, it comes behind all other callbacks."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rows, self.metrics, self.validating = [], [], set()

    def on_train_epoch_start(self, trainer, pl_module):
        self.metrics.append({*trainer.callback_metrics, *trainer.progress_bar_metrics})
        self.metrics.append({*trainer.progress_bar_callback._metric_component._metrics})  # on the screen

    def on_train_batch_end(self, trainer, *args):
        bar = trainer.progress_bar_callback
        (task,) = bar.progress.tasks  # one row
        self.rows.append((task.description, task.completed, task.total))
        super().on_train_batch_end(trainer, *args)

    def on_validation_batch_end(self, trainer, *args):
        if trainer.state.fn == "fit":
            (task,) = trainer.progress_bar_callback.progress.tasks
            self.validating.add(task.description)


@pytest.fixture
def fit(make_model, make_data, make_engine, tmp_path):
    def run():
        watcher, model, data = Watcher(tmp_path / "kept"), make_model(dense_epochs=1, distill_epochs=2), make_data()
        engine = make_engine(enable_progress_bar=True, callbacks=[watcher])
        engine.fit(model, datamodule=data)
        return engine, watcher, model, data

    return run


def test_one_row_names_the_stage_and_counts_all_of_them(fit):
    engine, watcher, model, data = fit()
    assert watcher.rows == [
        ("Stage 1/2 dense fine-tuning, epoch 1/1", 1, 9), ("Stage 1/2 dense fine-tuning, epoch 1/1", 2, 9),
        ("Stage 1/2 dense fine-tuning, epoch 1/1", 3, 9),
        ("Stage 2/2 distillation, epoch 1/2", 4, 9), ("Stage 2/2 distillation, epoch 1/2", 5, 9),
        ("Stage 2/2 distillation, epoch 1/2", 6, 9),
        ("Stage 2/2 distillation, epoch 2/2", 7, 9), ("Stage 2/2 distillation, epoch 2/2", 8, 9),
        ("Stage 2/2 distillation, epoch 2/2", 9, 9),
    ]  # fmt: skip
    assert watcher.validating == {"Stage 2/2 distillation, validation"}
    assert type(engine.trainer.progress_bar_callback) is StageProgressBar
    engine.test(model, datamodule=data)  # the trainer goes on with a bar
    assert type(engine.trainer.progress_bar_callback) is StageProgressBar
    assert sum(isinstance(callback, RichProgressBar) for callback in engine.trainer.callbacks) == 1


def test_metrics_of_a_stage_are_gone_in_the_next(fit):
    engine, watcher, *_ = fit()
    assert [known for known in watcher.metrics if {"dense_loss", "dense_loss_epoch"} & known] == []
    assert "distill_loss" in engine.trainer.callback_metrics
    assert not {"dense_loss", "dense_loss_epoch", "prototype_perplexity"} & set(engine.trainer.callback_metrics)


@pytest.mark.parametrize("own", [RichProgressBar(leave=True), TQDMProgressBar()], ids=["rich", "tqdm"])
def test_a_bar_of_the_user_stays(make_model, make_data, make_engine, own):
    engine = make_engine(enable_progress_bar=True, callbacks=[own])
    engine.fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=make_data())
    assert engine.trainer.progress_bar_callback is own


def test_no_bar_stays_none(make_model, make_data, make_engine):
    engine = make_engine()
    engine.fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=make_data())
    assert engine.trainer.progress_bar_callback is None


def test_a_pass_takes_the_place_of_the_bar(make_model, make_data, make_engine):
    said = []

    class Pass(Callback):
        def on_train_batch_end(self, trainer, *args):
            bar = trainer.progress_bar_callback
            for item in track(trainer, "a pass", "abc", 3):
                (task,) = bar.progress.tasks
                said.append((item, task.description, task.completed, task.total))
            (task,) = bar.progress.tasks
            said.append((task.description, task.total))

    engine = make_engine(enable_progress_bar=True, callbacks=[Pass()], limit_train_batches=1)
    engine.fit(make_model(dense_epochs=0, distill_epochs=1), datamodule=make_data())
    where = "Stage 2/2 distillation, a pass"
    assert said == [
        ("a", where, 0, 3), ("b", where, 1, 3), ("c", where, 2, 3), ("Stage 2/2 distillation, epoch 1/1", 1),
    ]  # fmt: skip


def test_time_left_follows_the_current_stage(monkeypatch):
    now = 0.0
    monkeypatch.setattr(stage_bar.time, "monotonic", lambda: now)
    left = TimeLeft()
    left.begin(0, 0, 30)
    assert left.seconds is None
    now = 20.0
    left.count(10)
    assert left.seconds == 40  # 20 batches of 2 s
    now = 100.0  # something else in between
    left.begin(1, 10, 30)
    assert left.seconds == 40  # nothing is known of this stage yet
    now = 101.0
    left.count(11)
    assert left.seconds == 19
    left.begin(1, 20, 40)  # an epoch on, with more planned
    now = 110.0
    left.count(20)
    assert left.seconds == 20
    assert re.fullmatch(r"0:00:20 left", stage_bar._TimeLeftColumn(left).render(None).plain)
