"""The runner of stages: its policy of epochs, its order, and that the trainer is given back."""

import logging

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from every_model import differing, state_of
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn

from anomalib_defend import SemanticFolder
from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.run import Run
from anomalib_defend.models.components.stage import Stage, Step
from anomalib_defend.models.components.trainer_limits import check_max_epochs
from anomalib_defend.nn.encoder import DataConfig


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)
        self.events = []

    def forward(self, images):
        return InferenceBatch(pred_score=self.second(images.mean(dim=(2, 3))).flatten())


class Traced(Stage):
    def optimizers(self):
        return torch.optim.SGD(getattr(self.model, self.name).parameters(), 0.1)

    def note(self, event):
        self.model.events.append(f"{self.name} {event}")

    def plan(self, run):
        self.note("plan")
        return super().plan(run)

    def prepare(self, run, epochs):
        self.note(f"prepare {epochs}")

    def enter(self, run):
        self.note(f"enter {run.epoch}")

    def step(self, batch, run):
        self.note("step")
        loss = getattr(self.model, self.name)(batch.image.mean(dim=(2, 3))).square().mean()
        return Step(loss, {f"{self.name}_metric": loss.detach()})

    def updated(self, run):
        self.note("updated")

    def end_epoch(self, run):
        self.note(f"end {run.epoch}")

    def complete(self, run):
        self.note("complete")

    def leave(self, run):
        self.note("leave")

    def close(self, run, failed):
        self.note("failed" if failed else "close")


class First(Traced):
    name, length, loss_name, validates = "first", "first_epochs", "first_loss", False

    @property
    def skipped(self):
        return self.arguments["first_epochs"] == 0

    @property
    def finished(self):
        return self.model.events.count("first updated") >= self.arguments["first_steps"]


class Second(Traced):
    name, length, loss_name = "second", "second_epochs", "second_loss"


class TwoStages(NoveltyDetectorMixin, AnomalibModule):
    distinctive_tensor = "model.second.weight"
    architecture = ()
    stage_names = ("first", "second")
    has_map = False

    def __init__(self, first_epochs=2, second_epochs=2, first_steps=100, seed=0):
        super().__init__(data=DataConfig((8, 8), (0.0,) * 3, (1.0,) * 3))
        self.model = self.build()

    def build(self, state=None):
        return Weights()

    def stages(self):
        return [First(self.model, self.hparams), Second(self.model, self.hparams)]

    def initialize(self):
        self.model.first.reset_parameters()
        self.model.second.reset_parameters()


@pytest.fixture
def data(write):
    """Two batches."""
    root = write("SemanticFolder")
    return SemanticFolder(root, "cat", num_workers=0, train_batch_size=4, eval_batch_size=4)


EPOCH = ["step", "updated"] * 2


def named(stage, *events):
    return [f"{stage} {event}" for event in events]


def test_stages_are_entered_and_left_in_order(data, make_engine):
    model = TwoStages()
    make_engine().fit(model, datamodule=data)
    assert model.model.events == [
        *("first plan", "second plan", "first prepare 2", "second prepare 2"),
        *named("first", "enter 0", *EPOCH, "end 0", *EPOCH, "end 1", "leave"),
        *named("second", "enter 2", *EPOCH, "complete", "end 2", *EPOCH, "complete", "end 3"),
        *("first close", "second close"),
    ]
    assert model.trained_steps.tolist() == [4, 4]


def test_a_skipped_stage_is_not_looked_at(data, make_engine):
    model, engine = TwoStages(first_epochs=0), make_engine()
    engine.fit(model, datamodule=data)
    assert not [event for event in model.model.events if event.startswith("first") and event != "first close"]
    assert engine.trainer.current_epoch == 2


def test_a_reused_stage_has_its_epochs_counted_but_not_trained(data, make_engine, monkeypatch, tmp_path):
    """The next stage has the epochs, and so the random numbers, that it would have behind it; also resumed."""
    monkeypatch.setattr(First, "reused", True)
    every = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    model, engine, again = TwoStages(), make_engine(callbacks=[every], max_epochs=4), TwoStages()
    engine.fit(model, datamodule=data)
    assert model.model.events == [
        *("first plan", "second plan", "second prepare 2"),
        *named("second", "enter 2", *EPOCH, "complete", "end 2", *EPOCH, "complete", "end 3"),
        *("first close", "second close"),
    ]
    assert engine.trainer.current_epoch == 4
    make_engine().fit(again, datamodule=data, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert not differing(state_of(model), state_of(again))
    assert again.trained_steps.tolist() == [0, 4]


def test_a_stage_that_ends_early_gives_its_epochs_back(data, make_engine):
    model, engine = TwoStages(first_epochs=3, first_steps=1), make_engine()
    engine.fit(model, datamodule=data)
    assert model.model.events.count("first step") == 1
    assert "second enter 1" in model.model.events
    assert engine.trainer.current_epoch == 1 + 2
    assert model.trained_steps.tolist() == [1, 4]


def settings(trainer):
    return [
        (trainer.limit_val_batches, trainer.limit_train_batches, trainer.max_epochs, trainer.max_steps),
        [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)],
    ]


class Noted(Callback):
    """The trainer's settings before the runner has changed any, and while a stage is on."""

    def __init__(self, fails_in=-1):
        self.before, self.at_epochs, self.fails_in = None, [], fails_in

    def setup(self, trainer, pl_module, stage):
        self.before = settings(trainer)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at_epochs.append(settings(trainer))
        if trainer.current_epoch == self.fails_in:
            raise OSError("no space left")


@pytest.mark.parametrize("fails_in", [-1, 0, 2])
def test_the_trainer_is_given_back(data, make_engine, fails_in):
    """Validation and early stopping are set aside in the first stage alone."""
    noted = Noted(fails_in)
    engine = make_engine(callbacks=[noted, EarlyStopping("val_score", patience=10)])
    model = TwoStages()
    if fails_in < 0:
        engine.fit(model, datamodule=data)
    else:
        with pytest.raises(OSError, match="no space left"):
            engine.fit(model, datamodule=data)
        assert model.model.events[-2:] == ["first failed", "second failed"]
    (limits, early_stopping), first = noted.before, noted.at_epochs[0]
    assert first[0][0] == 0
    assert not first[1]
    assert settings(engine.trainer) == [limits, early_stopping]
    assert len(early_stopping) == 1
    if fails_in < 0:
        assert noted.at_epochs[-1][0][0] == limits[0]
        assert noted.at_epochs[-1][1] == early_stopping


class Metrics(Callback):
    def __init__(self):
        self.names = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        metrics = trainer.callback_metrics.keys() | trainer.progress_bar_metrics.keys()
        self.names.append({name.split("_")[0] for name in metrics if name.startswith(("first", "second"))})


def test_metrics_of_a_stage_leave_with_it(data, make_engine):
    metrics = Metrics()
    make_engine(callbacks=[metrics]).fit(TwoStages(), datamodule=data)
    assert metrics.names[:4] == [{"first"}] * 4
    assert metrics.names[5:] == [{"second"}] * 3  # the first step's are shown after it
    assert "first" not in metrics.names[4]


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_resumed_in_the_middle_of_a_stage(data, make_engine, tmp_path, step):
    steps = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    make_engine(callbacks=[steps]).fit(TwoStages(), datamodule=data)
    model = TwoStages()
    make_engine().fit(model, datamodule=data, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert model.trained_steps.tolist() == [4, 4]
    events = model.model.events
    assert events.count("first step") == max(0, 4 - step)
    assert events.count("second step") == min(4, 8 - step)
    assert events.count("second leave") == 0


def test_an_early_end_is_remembered(data, make_engine, tmp_path):
    """A checkpoint of the epoch in which a stage has ended by itself."""
    arguments = {"first_epochs": 3, "first_steps": 1}
    every = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    make_engine(callbacks=[every]).fit(TwoStages(**arguments), datamodule=data)
    model = TwoStages(**arguments)
    make_engine().fit(model, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert model.trained_steps.tolist() == [1, 4]


@pytest.mark.parametrize("max_epochs", [3, 4])
def test_fewer_epochs_that_leave_the_last_stage_one(max_epochs, caplog):
    with caplog.at_level(logging.WARNING):
        assert check_max_epochs(max_epochs, {"a": 2, "b": 2}) == max_epochs
    assert ("stops the training early" in caplog.text) == (max_epochs < 4)


@pytest.mark.parametrize("max_epochs", [None, -1, 0, 2, 5])
def test_other_limits_are_refused(max_epochs):
    with pytest.raises(ValueError, match=r"does not fit a=2 \+ b=2: leave it out, or set it to a number from 3 to 4"):
        check_max_epochs(max_epochs, {"a": 2, "b": 2})


def test_the_policy_counts_from_the_first_epoch_of_a_resumed_run():
    assert check_max_epochs(7, {"b": 2}, first_epoch=5) == 7
    with pytest.raises(ValueError, match=r"from 6 to 7 to stop early. For more epochs, raise model\.b"):
        check_max_epochs(8, {"b": 2}, first_epoch=5)


@pytest.mark.parametrize(("max_epochs", "epochs"), [(None, 4), (3, 3), (4, 4)])
def test_epochs_of_the_trainer(data, make_engine, max_epochs, epochs):
    engine = make_engine(**({} if max_epochs is None else {"max_epochs": max_epochs}))
    engine.fit(TwoStages(), datamodule=data)
    assert engine.trainer.current_epoch == epochs


def test_a_finished_engine_is_refused(data, make_engine):
    engine, model = make_engine(), TwoStages()
    engine.fit(model, datamodule=data)
    state = state_of(model)
    with pytest.raises(RuntimeError, match="has finished its training: use a new Engine"):
        engine.fit(model, datamodule=data)
    assert not differing(state, state_of(model))


def test_all_processes_have_the_same_buffers_whenever_a_model_is_completed(data, make_engine, monkeypatch):
    """Batch norms and running means differ between them by the last batch; no stage has to think of it."""
    monkeypatch.setattr(Run, "share_buffers", lambda _run, network: network.events.append("shared"))
    model = TwoStages()
    make_engine().fit(model, datamodule=data)
    events = model.model.events
    completed = [index for index, event in enumerate(events) if event == "second complete"]
    assert len(completed) == events.count("shared") == 2
    assert all(events[index - 1] == "shared" for index in completed)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
@pytest.mark.parametrize("action", ["fit", "test"])
def test_a_precision_of_the_weights_is_refused_in_a_sentence(data, make_engine, precision, action):
    """Any model of anomalib's ends in an error of a convolution or a linear layer."""
    message = f"trainer.precision={precision} converts the weights, but anomalib's images stay float32: take bf16-mixed"
    with pytest.raises(ValueError, match=message):
        getattr(make_engine(precision=precision), action)(TwoStages(), datamodule=data)
