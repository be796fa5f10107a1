"""Losses, weights and scores that are not finite stop a run, and nothing good is lost by them."""

import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import Callback

from anomalib_defend import SemanticVOC

NAN, INFINITY = float("nan"), float("inf")


class Spoil(Callback):
    """Makes the loss of one stage something else, from a step on; counts the steps."""

    def __init__(self, method, value, epoch, batch=0):
        self.method, self.value, self.start, self.steps = method, value, (epoch, batch), []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) >= self.start:
            self.steps.append(batch_idx)
        if (trainer.current_epoch, batch_idx) == self.start:
            step = getattr(type(pl_module.model), self.method).__get__(pl_module.model)

            def spoiled(*inputs):
                result = step(*inputs)
                return (result[0] * self.value, result[1]) if isinstance(result, tuple) else result * self.value

            setattr(pl_module.model, self.method, spoiled)


@pytest.mark.parametrize(
    ("method", "epoch", "batch", "value", "message"),
    [
        ("dense_step", 1, 0, NAN, r"dense_loss is nan in stage 1 \(dense fine-tuning\), epoch 1, batch 0: lower dense"),
        ("dense_step", 1, 2, -INFINITY, r"dense_loss is -inf in stage 1 \(dense fine-tuning\), epoch 1, batch 2"),
        (
            "distill_step",
            3,
            1,
            INFINITY,
            r"distill_loss is inf in stage 2 \(distillation\), epoch 3, batch 1: .*student_lr",
        ),
        ("distill_step", 3, 2, NAN, r"distill_loss is nan in stage 2"),  # the last: nothing follows but saving
    ],
)
def test_a_loss_that_is_not_finite_stops_the_training(
    make_model, make_data, make_engine, tmp_path, method, epoch, batch, value, message
):
    spoil = Spoil(method, value, epoch, batch)
    engine = make_engine(callbacks=[spoil])
    with pytest.raises(FloatingPointError, match=message):
        engine.fit(make_model(dense_epochs=2, distill_epochs=2), datamodule=make_data())
    assert len(spoil.steps) <= 3
    (path,) = (tmp_path / "results").rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["epoch"] == epoch - 1
    assert all(value.isfinite().all() for name, value in checkpoint["state_dict"].items() if name.startswith("model."))
    make_engine().fit(make_model(dense_epochs=2, distill_epochs=2), datamodule=make_data(), ckpt_path=path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_checkpoint_of_every_step_is_not_replaced_by_a_damaged_one(
    make_model, make_data, make_engine, tmp_path, precision
):
    step = ModelCheckpoint(dirpath=tmp_path / "steps", filename="model", every_n_train_steps=1)
    engine = make_engine(callbacks=[Spoil("distill_step", NAN, 1, 1), step], precision=precision)
    with pytest.raises(FloatingPointError, match="distill_loss is nan"):
        engine.fit(make_model(), datamodule=make_data())
    (path,) = (tmp_path / "steps").iterdir()
    assert torch.load(path, weights_only=True)["global_step"] == 4


def test_weights_that_became_infinite_are_not_saved(make_model, make_data, make_engine, tmp_path):
    class Explode(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.current_epoch == 1 and trainer.is_last_batch:
                pl_module.model.student.norm.weight.data.fill_(INFINITY)

    engine = make_engine(callbacks=[Explode()], limit_val_batches=0)
    with pytest.raises(FloatingPointError, match=r"Weights became NaN or infinite \(model.student.norm.weight\)"):
        engine.fit(make_model(), datamodule=make_data())
    (path,) = (tmp_path / "results").rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["epoch"] == 0


class Scratch(Callback):
    """Puts a pixel that is not finite into a batch; the images reach the model as they are in the file."""

    def __init__(self, hook, value):
        setattr(self, hook, lambda trainer, pl_module, batch, *args: batch.image[0, 0, 3, 4].fill_(value))


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_images_that_are_not_finite_are_named(make_model, make_data, make_engine, value):
    message = r"NaN or infinite pixels in \S+/t\w+\.jpg, seen in stage 1 .*epoch 0, batch 0 \(dense_loss\)"
    with pytest.raises(FloatingPointError, match=message):
        make_engine(callbacks=[Scratch("on_train_batch_start", value)]).fit(make_model(), datamodule=make_data())
    model, engine = make_model(dense_epochs=0), make_engine()
    engine.fit(model, datamodule=make_data())
    for hook, run in (("on_test_batch_start", engine.test), ("on_predict_batch_start", engine.predict)):
        engine.trainer.callbacks.append(Scratch(hook, value))
        with pytest.raises(ValueError, match=r"score is not finite: NaN or infinite pixels in \S+\.jpg"):
            run(model, datamodule=make_data())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_few_images_train(make_model, make_engine, write_voc, tmp_path, images, batch_size):
    """One image, fewer than a batch, a batch of one: both stages train, and the images are scored."""
    labels = {f"t{index}": {"dog": 1} for index in range(images + 1)}  # one of them becomes the validation image
    root = write_voc(tmp_path / "few", train=labels)
    data = SemanticVOC(root, category="dog", train_batch_size=batch_size, eval_batch_size=1, num_workers=0)
    model, engine = make_model(), make_engine()
    engine.fit(model, datamodule=data)
    steps = -(-images // batch_size)
    assert model.trained_steps.tolist() == [steps, 2 * steps]
    raw = torch.cat([batch.raw_score for batch in engine.predict(model, datamodule=data)])
    assert raw.isfinite().all()
