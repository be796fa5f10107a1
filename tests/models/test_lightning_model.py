"""Both stages in one fit, checkpoints, and how the trainer's own options work with them."""

import logging
from pathlib import Path

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback, EarlyStopping
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_defend import Defend


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Recorder(Callback):
    """Records at each epoch's end, and counts validated batches."""

    def __init__(self):
        self.teachers, self.students, self.validated, self.logged = [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.validated.append(0)
        if not self.teachers:
            self.teachers.append(weights(pl_module.model.teacher))
            self.students.append(weights(pl_module.model.student))

    def on_validation_batch_end(self, *args):
        self.validated[-1] += 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.teachers.append(weights(pl_module.model.teacher))
        self.students.append(weights(pl_module.model.student))
        self.logged.append(set(trainer.callback_metrics))


@pytest.fixture
def every_epoch(tmp_path):
    """Keeps the checkpoint of every epoch, as ``epoch=<number>.ckpt``."""
    return ModelCheckpoint(dirpath=tmp_path / "every", filename="{epoch}", save_top_k=-1)


def test_each_stage_trains_its_own_part(make_model, make_data, make_engine, caplog):
    recorder = Recorder()
    model = make_model(dense_epochs=2, distill_epochs=2, dense_lr=1e-3)
    engine = make_engine(callbacks=[recorder])
    with caplog.at_level(logging.INFO):
        engine.fit(model, datamodule=make_data())
    before, *after = recorder.teachers
    changed = {name for name in before if not torch.equal(before[name], after[1][name])}
    last_two = {name for name in before if name.startswith(("blocks.4.", "blocks.5."))}
    assert changed == last_two
    assert equal(after[1], after[2])
    assert equal(after[1], after[3])
    student_before, *student_after = recorder.students
    assert equal(student_before, student_after[1])
    assert not equal(student_after[1], student_after[3])
    assert model.trained_steps.tolist() == [6, 6]
    # no validation in stage 1
    assert recorder.validated[:2] == [0, 0]
    assert min(recorder.validated[2:]) > 0
    assert {"dense_loss", "prototype_perplexity"} <= recorder.logged[0]
    assert "distill_loss" not in recorder.logged[1]
    assert {"distill_loss", "val_score"} <= recorder.logged[3]
    messages = [message for message in caplog.messages if message.startswith("Stage")]
    assert [message.split(",")[0] for message in messages] == ["Stage 1", "Stage 1", "Stage 2", "Stage 2"]
    assert engine.trainer.limit_val_batches == 1.0


def test_without_dense_epochs_the_teacher_stays_as_it_is(make_model, make_data, make_engine):
    recorder = Recorder()
    model = make_model(dense_epochs=0)
    make_engine(callbacks=[recorder]).fit(model, datamodule=make_data())
    assert equal(recorder.teachers[0], recorder.teachers[-1])
    assert not any(parameter.requires_grad for parameter in model.model.teacher.parameters())
    assert model.trained_steps.tolist() == [0, 6]


@pytest.mark.parametrize(("max_epochs", "trained"), [(None, 3), (3, 3), (2, 2)])
def test_max_epochs_is_honoured(make_model, make_data, make_engine, max_epochs, trained):
    engine = make_engine(max_epochs=max_epochs)
    engine.fit(make_model(), datamodule=make_data())
    assert engine.trainer.current_epoch == trained


@pytest.mark.parametrize("max_epochs", [1, 4, -1])
def test_max_epochs_that_does_not_fit_is_refused(make_model, make_data, make_engine, max_epochs):
    with pytest.raises(ValueError, match=r"trainer.max_epochs=-?\d does not fit dense_epochs=1 \+ distill_epochs=2"):
        make_engine(max_epochs=max_epochs).fit(make_model(), datamodule=make_data())


def test_fast_dev_run_runs_both_stages(make_model, make_data, make_engine):
    model = make_model(dense_epochs=3, distill_epochs=5)
    make_engine(fast_dev_run=True).train(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.5},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.5},
    ],
)
def test_trainer_options_work(make_model, make_data, make_engine, options):
    model = make_model()
    make_engine(**options).train(model, datamodule=make_data())
    assert all(value.isfinite().all() for value in model.model.state_dict().values())


def test_early_stopping_and_best_checkpoint_see_stage_2_alone(make_model, make_data, make_engine, tmp_path):
    stopping = EarlyStopping(monitor="val_score", mode="max", patience=0)  # the score falls: stops when it may look
    best = ModelCheckpoint(dirpath=tmp_path / "best", filename="{epoch}", monitor="val_score", mode="min")
    engine = make_engine(callbacks=[stopping, best])
    engine.fit(make_model(dense_epochs=3, distill_epochs=6), datamodule=make_data())
    assert stopping.stopped_epoch > 3
    assert engine.trainer.current_epoch < 9
    assert next((tmp_path / "best").iterdir()).stem >= "epoch=3"
    assert stopping in engine.trainer.callbacks


def test_the_checkpoint_that_is_named_is_the_one_that_was_tested(make_model, make_data, make_engine, tmp_path, caplog):
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val_score", mode="max")  # the score falls
    model, engine = make_model(), make_engine(callbacks=[best])
    with caplog.at_level(logging.INFO):
        engine.train(model, datamodule=make_data())
    (checkpoint,) = [text.removeprefix("Checkpoint: ") for text in caplog.messages if text.startswith("Checkpoint: ")]
    assert f"Trained: {checkpoint}" in caplog.messages
    assert f"Best by val_score: {best.best_model_path}" in caplog.messages
    assert checkpoint != best.best_model_path
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value.nan_to_num(), saved[name].nan_to_num()) for name, value in weights(model).items())


def test_a_training_that_stops_before_its_validation_says_so(make_model, make_data, make_engine, caplog):
    stopping = EarlyStopping(monitor="distill_loss", mode="max", patience=0, check_on_train_epoch_end=True)
    model, engine = (
        make_model(dense_epochs=0, distill_epochs=9),
        make_engine(callbacks=[stopping], check_val_every_n_epoch=8),
    )
    engine.fit(model, datamodule=make_data())
    assert engine.trainer.current_epoch < 8
    assert model.post_processor.image_threshold.isnan()
    assert "No normal image was validated with the weights that this training ends with" in caplog.text
    assert engine.trainer.check_val_every_n_epoch == 8


def test_a_stop_that_has_to_wait_changes_no_interval(make_model, make_data, make_engine):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    recorder = Recorder()
    engine = make_engine(callbacks=[Stop(), recorder], check_val_every_n_epoch=2, min_epochs=3)
    engine.fit(make_model(dense_epochs=0, distill_epochs=5), datamodule=make_data())
    assert engine.trainer.current_epoch == 3
    assert recorder.validated == [1, 1, 1]  # at most once an epoch, and after the last step
    assert engine.trainer.check_val_every_n_epoch == 2


@pytest.mark.parametrize(
    ("argument", "setting", "expected"), [(None, "uni_class", 2), (None, "leave_one_out", 4), (9, "uni_class", 9)]
)
def test_number_of_prototypes(make_model, make_data, make_engine, caplog, argument, setting, expected):
    model = make_model(num_prototypes=argument)
    with caplog.at_level(logging.INFO):
        make_engine(fast_dev_run=True).fit(model, datamodule=make_data(setting=setting))
    assert len(model.model.head.prototypes) == expected
    assert argument or f"num_prototypes={expected}" in caplog.text


def test_collapse_is_warned_about(make_model, make_data, make_engine, caplog, monkeypatch):
    model = make_model(num_prototypes=8)
    step = model.model.dense_step
    monkeypatch.setattr(model.model, "dense_step", lambda images: (step(images)[0], torch.tensor(1.0)))
    make_engine().fit(model, datamodule=make_data())
    assert "1.0 of 8 prototypes are in use" in caplog.text


# ---------------------------------------------------------------------------------------------------------- checkpoints


def scores(engine, model, data, ckpt_path=None):
    """Raw scores by image path, and the metrics that the engine reports."""
    metrics = engine.test(model, datamodule=data, ckpt_path=ckpt_path)[0]
    batches = engine.predict(model, datamodule=data, ckpt_path=ckpt_path)
    raw = {
        path: score for batch in batches for path, score in zip(batch.image_path, batch.raw_score.tolist(), strict=True)
    }
    return raw, metrics


def test_checkpoint_brings_architecture_and_identical_scores(
    make_model, make_data, make_engine, every_epoch, tmp_path, caplog
):
    model = make_model(image_size=(40, 48), masking="random", num_prototypes=7)
    engine = make_engine(callbacks=[every_epoch])
    engine.fit(model, datamodule=make_data())
    trained, metrics = scores(engine, model, make_data())
    other = Defend(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "gone.safetensors"))
    caplog.clear()
    restored, again = scores(make_engine(), other, make_data(), every_epoch.best_model_path)
    told = "backbone='vit_tiny_patch16_224' (the checkpoint's is 'vit_digits_patch8_96'), weights='"
    assert caplog.text.count(f"these that were given have no effect: {told}") == 1
    assert "image_size" not in caplog.text  # was not given
    assert other.hparams.backbone == "vit_digits_patch8_96"
    assert other.model.image_size == (40, 48)
    assert restored == trained
    assert again == metrics
    loaded = Defend.load_from_checkpoint(every_epoch.best_model_path)
    assert equal(weights(loaded.model), weights(model.model))


def test_a_training_after_another_checkpoint_is_of_the_models_own_arguments(
    make_model, make_data, make_engine, tmp_path
):
    """Networks and input included; a checkpoint that was refused late included."""
    short, own = {"dense_epochs": 0, "distill_epochs": 1}, {"image_size": (40, 48), "num_prototypes": 7}
    (first := make_engine()).fit(make_model(**short), datamodule=make_data())
    make_engine().fit(expected := make_model(**short, **own), datamodule=make_data())
    model = make_model(**short, **own)
    make_engine().test(model, datamodule=make_data(), ckpt_path=first.best_model_path)
    assert model.model.image_size == (32, 32)
    make_engine().fit(model, datamodule=make_data())
    assert model.model.image_size == (40, 48)
    assert equal(weights(model.model), weights(expected.model))

    broken = torch.load(first.best_model_path, weights_only=True)
    broken["state_dict"]["model.student.norm.weight"] = torch.ones(3)
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match="does not fit anomalib-defend"):
        make_engine().fit(model, datamodule=make_data(), ckpt_path=tmp_path / "broken.ckpt")
    make_engine().fit(model, datamodule=make_data())
    assert equal(weights(model.model), weights(expected.model))
    assert dict(model.hparams) == dict(expected.hparams)


def test_checkpoint_of_stage_1_is_refused_but_resumed(make_model, make_data, make_engine, every_epoch, tmp_path):
    make_engine(callbacks=[every_epoch]).fit(make_model(), datamodule=make_data())
    early = tmp_path / "every" / "epoch=0.ckpt"
    with pytest.raises(RuntimeError, match="Cannot test: this Defend comes out of stage 1"):
        make_engine().test(make_model(), datamodule=make_data(), ckpt_path=early)
    with pytest.raises(RuntimeError, match="Cannot predict: this Defend comes out of stage 1"):
        make_engine().predict(make_model(), datamodule=make_data(), ckpt_path=early)
    with pytest.raises(RuntimeError, match="Cannot export: this Defend comes out of stage 1"):
        make_engine().export(make_model(), "torch", ckpt_path=early, export_root=tmp_path)
    resumed = Defend(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "gone.safetensors"))
    make_engine().fit(resumed, datamodule=make_data(), ckpt_path=early)
    assert resumed.trained_steps.tolist() == [3, 6]


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_resuming_continues_either_stage(make_model, make_data, make_engine, every_epoch, tmp_path, epoch):
    recorder = Recorder()
    make_engine(callbacks=[every_epoch]).fit(make_model(dense_epochs=2, distill_epochs=3), datamodule=make_data())
    model, engine = make_model(dense_epochs=2, distill_epochs=3), make_engine(callbacks=[recorder])
    engine.fit(model, datamodule=make_data(), ckpt_path=tmp_path / "every" / f"epoch={epoch}.ckpt")
    saved = torch.load(tmp_path / "every" / f"epoch={epoch}.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(value, saved[f"model.student.{name}"]) for name, value in recorder.students[0].items())
    assert model.trained_steps.tolist() == [6, 9]
    assert len(recorder.logged) == 4 - epoch


@pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 4)), 7])
def test_resuming_inside_an_epoch_enters_its_stage(make_model, make_data, make_engine, tmp_path, step):
    """Steps 1 to 6 are stage 1, two epochs of three; Lightning starts no new epoch when it resumes inside one."""
    every_step = ModelCheckpoint(dirpath=tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    make_engine(callbacks=[every_step]).fit(make_model(dense_epochs=2), datamodule=make_data())
    recorder = Recorder()
    recorder.validated.append(0)
    model, engine = make_model(dense_epochs=2), make_engine(callbacks=[recorder])
    engine.fit(model, datamodule=make_data(), ckpt_path=tmp_path / "steps" / f"step={step}.ckpt")
    assert model.trained_steps.tolist() == [6, 6]
    assert sum(recorder.validated) == 2  # one batch after each epoch of stage 2
    assert not model.model.teacher.training


def test_other_limits_of_the_trainer_are_honoured(make_model, make_data, make_engine):
    model = make_model()
    make_engine(max_steps=4).fit(model, datamodule=make_data())
    assert model.trained_steps.tolist() == [3, 1]


def test_resuming_may_go_on_for_longer(make_model, make_data, make_engine, every_epoch):
    make_engine(callbacks=[every_epoch]).fit(make_model(), datamodule=make_data())
    model = make_model(distill_epochs=4)
    make_engine().fit(model, datamodule=make_data(), ckpt_path=every_epoch.best_model_path)
    assert model.trained_steps.tolist() == [3, 12]


# ------------------------------------------------------------------------------------------------ metrics and errors


def test_checkpoint_of_another_pre_processor_is_refused(make_model, make_data, make_engine, every_epoch):
    make_engine(callbacks=[every_epoch]).fit(make_model(dense_epochs=0), datamodule=make_data())
    stock = PreProcessor(Compose([Resize((32, 32)), Normalize([0.5] * 3, [0.5] * 3)]))
    with pytest.raises(ValueError, match="trained with another component than PreProcessor"):
        make_engine().test(
            make_model(pre_processor=stock), datamodule=make_data(), ckpt_path=every_epoch.best_model_path
        )


def test_a_stock_pre_processor_works(make_model, make_data, make_engine, every_epoch):
    def stock():
        return PreProcessor(Compose([Resize((32, 32)), Normalize([0.5] * 3, [0.5] * 3)]))

    engine = make_engine(callbacks=[every_epoch])
    trained = engine.train(make_model(dense_epochs=0, pre_processor=stock()), datamodule=make_data())
    other = make_model(pre_processor=stock())
    assert make_engine().test(other, datamodule=make_data(), ckpt_path=every_epoch.best_model_path) == trained


def test_images_of_another_size_are_refused(make_model, make_data, make_engine):
    with pytest.raises(ValueError, match="its pre_processor has to resize them"):
        make_engine().fit(make_model(pre_processor=False), datamodule=make_data(train_batch_size=1))


@pytest.mark.parametrize("batch_size", [1, 4, 8])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("normalization", [True, False])
def test_auroc_is_that_of_the_raw_scores(make_model, make_data, make_engine, batch_size, scale, normalization):
    model = make_model(dense_epochs=0, distill_epochs=1)
    data = make_data(eval_batch_size=batch_size)
    engine = make_engine()
    engine.fit(model, datamodule=data)
    model.post_processor.enable_normalization = normalization
    forward = model.model.forward
    model.model.forward = lambda images: forward(images)._replace(pred_score=forward(images).pred_score * scale)
    raw, metrics = scores(engine, model, data)
    labels = data.test_data.samples.set_index("image_path").label_index
    expected = roc_auc_score([labels[path] for path in raw], list(raw.values()))
    assert metrics["image_AUROC"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vit_tinny"}, "backbone='vit_tinny' is not a timm model"),
        ({"backbone": "resnet18"}, "resnet18"),
        ({"image_size": 33}, "image_size=.33, 33. must be a multiple of the patch size"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must be at least 0 and at most 0.99"),
        ({"distill_epochs": 0}, "distill_epochs=0 must be at least 1"),
        ({"distill_layers": 7}, "has 6 blocks"),
        ({"crop_size": 12}, "crop_size=.12, 12. must be a multiple"),
        ({"target_fpr": 0.0}, "target_fpr=0.0 must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_wrong_weights_are_named_before_the_first_epoch(make_model, make_data, make_engine, tmp_path):
    recorder = Recorder()
    with pytest.raises(FileNotFoundError, match="no such file"):
        make_engine(callbacks=[recorder]).fit(make_model(weights=str(tmp_path / "no.pth")), datamodule=make_data())
    assert not recorder.validated


def test_ddp_has_to_be_told_about_the_stages(make_model, make_data, make_engine, monkeypatch):
    engine = make_engine(strategy="ddp", fast_dev_run=True)
    monkeypatch.setenv("MASTER_PORT", "0")
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        engine.fit(make_model(), datamodule=make_data())
    torch.distributed.destroy_process_group()


def test_a_checkpoint_that_knows_no_attention_block_has_the_last(make_model, make_data, make_engine, tmp_path):
    model, engine = make_model(dense_epochs=0, distill_epochs=1), make_engine()
    engine.fit(model, datamodule=make_data())
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    assert checkpoint["hyper_parameters"].pop("attention_block", 0) is None
    torch.save(checkpoint, older := tmp_path / "older.ckpt")
    expected, _ = scores(engine, model, make_data())
    restored, _ = scores(make_engine(), other := make_model(attention_block=1), make_data(), older)
    assert restored == expected
    assert other.hparams.attention_block is None
    assert other.model.attention_block == 6
    assert Defend.load_from_checkpoint(older).model.attention_block == 6


def test_what_has_become_another_model_is_named(tmp_path, make_data, make_engine, make_model):
    with pytest.raises(ValueError, match=r"score='prototypes' is a model of its own now: train ObjectPrototypes"):
        make_model(score="prototypes")
    old = Path(__file__).parent / "version_0_1" / "defend_prototypes.ckpt"
    checkpoint = torch.load(old, weights_only=True)
    for name in [name for name in checkpoint["state_dict"] if ".normal_prototypes." in name]:  # as since then
        state = checkpoint["state_dict"]
        state[name.replace("normal_prototypes", "normality")] = state.pop(name)
    torch.save(checkpoint, newer := tmp_path / "newer.ckpt")
    for path in (old, newer):
        with pytest.raises(ValueError, match=r"ckpt_path is of score='prototypes', which is .* train ObjectPrototypes"):
            Defend.load_from_checkpoint(path)
        for action in ("test", "fit"):
            with pytest.raises(ValueError, match="train ObjectPrototypes"):
                getattr(make_engine(), action)(make_model(), datamodule=make_data(), ckpt_path=path)
