"""ARNet: what is erased, what is restored, how it is scored (``test_every_model.py`` has the rest)."""

import numpy as np
import pytest
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import Folder
from lightning.pytorch import Callback
from PIL import Image
from torch import nn

import anomalib_defend.models  # noqa: F401 - the bare name, also where the package is not installed
from anomalib_defend import ARNet, SemanticFolder
from anomalib_defend.models.arnet.torch_model import NUM_TRANSFORMS, ARNetModel, UNet, erase

TINY = {"image_size": 32, "width": 4, "epochs": 2, "seed": 0}


def landscape(rng, novel=False):
    """A blue sky over a green meadow, as light and as high as it happens; novel: a red door in it, as high as both."""
    pixels = np.zeros((36, 40, 3))
    horizon = rng.integers(14, 22)
    pixels[:horizon] = (60, 120, 230)
    pixels[horizon:] = (40, 160, 30)
    if novel:
        pixels[:, 10:28] = (220, 20, 60)
    return (pixels * rng.uniform(0.8, 1) + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, number in (("meadow", 40), ("door", 10)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(number):
            path = tmp_path / "pictures" / name / f"{index:02d}.png"
            Image.fromarray(landscape(rng, novel=name == "door")).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def make_data(pictures):
    defaults = {"train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    return lambda **kwargs: SemanticFolder(pictures, "meadow", **{**defaults, **kwargs})


@pytest.fixture
def trained(make_data, make_engine):
    engine, model, data = make_engine(), ARNet(**TINY), make_data()
    engine.fit(model, datamodule=data)
    return engine, model, data


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Perfect(nn.Module):
    """Restores what it is told, whatever it sees."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, erased):
        return self.images.repeat(len(erased) // len(self.images), 1, 1, 1)


# ------------------------------------------------------------------------------------------ erasing, restoring, scoring


def test_erasing_is_greying_and_rotating(images):
    erased = erase(images)
    assert erased.shape == (NUM_TRANSFORMS, 3, 1, 32, 32)
    grey = images.mean(dim=1, keepdim=True)
    for quarter_turns, rotated in enumerate(erased):
        assert torch.equal(rotated, torch.rot90(grey, quarter_turns, dims=(-2, -1)))


def test_on_grey_images_erasing_is_the_rotation_alone(images):
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(erase(grey)[0], grey[:, :1])


def test_the_target_is_the_upright_colour_image(images):
    model = ARNetModel(width=2)
    model.unet = Perfect(images)
    loss, errors = model.restoration_step(images)
    assert loss == 0
    assert torch.equal(errors, torch.zeros(NUM_TRANSFORMS))
    prediction = model(images)
    assert torch.equal(prediction.pred_score, torch.zeros(3))
    assert torch.equal(prediction.anomaly_map, torch.zeros(3, 1, 32, 32))
    model.unet = Perfect(torch.rot90(images, 1, dims=(-2, -1)))
    assert model.restoration_step(images)[0] > 0


def test_only_what_is_restored_badly_is_hot(images):
    model = ARNetModel(width=2)
    spoiled = images.clone()
    spoiled[1, 0, 5:9, 20:24] += 0.3
    model.unet = Perfect(spoiled)
    prediction = model(images)
    expected = torch.zeros(3, 1, 32, 32)
    expected[1, 0, 5:9, 20:24] = 0.1  # one of three channels
    torch.testing.assert_close(prediction.anomaly_map, expected)
    torch.testing.assert_close(prediction.pred_score, expected.mean(dim=(1, 2, 3)))


def test_the_score_is_normalised_for_each_transform(images):
    plain, normalized = (ARNetModel(2, normalize_scores=flag).eval() for flag in (False, True))
    normalized.load_state_dict(plain.state_dict())
    normalized.train_error.copy_(torch.tensor([0.1, 0.2, 0.5, 2.0]))
    with torch.no_grad():
        errors = torch.stack([
            (plain.unet(erased) - images).abs().mean(dim=(1, 2, 3)) for erased in erase(images)
        ])  # fmt: skip
        torch.testing.assert_close(plain(images).pred_score, errors.mean(dim=0))
        expected = (errors[0] / 0.1 + errors[1] / 0.2 + errors[2] / 0.5 + errors[3] / 2) / 4
        torch.testing.assert_close(normalized(images).pred_score, expected)
        for model in (plain, normalized):
            prediction = model(images)
            assert prediction.anomaly_map.shape == (3, 1, 32, 32)
            torch.testing.assert_close(prediction.anomaly_map.mean(dim=(1, 2, 3)), prediction.pred_score)


def test_the_network_is_the_papers():
    unet = UNet(64)
    channels = [module.out_channels for module in unet.modules() if isinstance(module, nn.Conv2d)]
    assert channels == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512, 256, 256, 128, 128, 64, 64, 64, 64, 3]
    for size in (16, 48):
        assert UNet(2)(torch.rand(2, 1, size, size)).shape == (2, 3, size, size)


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 28}, "image_size=28x28 must be a multiple of 16: try 32"),
        ({"image_size": 8}, "image_size=8x8 must be a multiple of 16: try 16"),
        ({"image_size": (32, 48)}, "image_size=32x48 must be square: ARNet rotates"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"lr": -1.0}, r"lr=-1\.0 must be at least 0"),
        ({"target_fpr": 2.0}, r"target_fpr=2\.0 must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ARNet(**{**TINY, **arguments})


def test_images_that_a_users_own_preprocessor_makes_are_checked():
    with pytest.raises(ValueError, match="must be square"):
        ARNetModel(2)(torch.rand(1, 3, 32, 48))


def test_the_trainers_epochs_are_honoured_or_refused(make_data, make_engine, caplog):
    engine = make_engine(max_epochs=3)
    with pytest.raises(ValueError, match=r"max_epochs=3 does not fit epochs=2: .* raise model\.epochs"):
        engine.fit(ARNet(**TINY), datamodule=make_data())
    engine = make_engine(max_epochs=1)
    engine.fit(ARNet(**TINY), datamodule=make_data())
    assert engine.trainer.current_epoch == 1
    assert "lower model.epochs" in caplog.text


# ------------------------------------------------------------------------------------------------------------- training


class Watch(Callback):
    def __init__(self):
        self.losses, self.rates = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(trainer.callback_metrics["train_loss_epoch"].item())


@pytest.mark.slow
def test_training_restores_the_normal_and_not_the_novel(make_data, make_engine):
    data, watch = make_data(), Watch()
    engine, model = make_engine(callbacks=[watch]), ARNet(**{**TINY, "epochs": 20, "width": 8})
    engine.fit(model, datamodule=data)
    assert watch.losses[-1] < watch.losses[0] / 3
    assert watch.rates == [0.1 * 0.5 ** (epoch // 2) for epoch in range(20)]
    (metrics,) = engine.test(model, datamodule=data)
    assert metrics["image_AUROC"] > 0.95


@pytest.mark.parametrize("width", [4, 64])
def test_the_papers_learning_rate_does_not_explode(images, width):
    torch.manual_seed(0)
    model, losses = ARNetModel(width), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss, _ = model.restoration_step(images[:2])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) == losses[0]


@pytest.mark.parametrize(
    ("epochs", "halvings"), [(5, [0, 2, 4, 6, 8]), (25, [10 * epoch // 25 for epoch in range(25)])]
)
def test_the_learning_rate_is_halved_after_each_tenth(make_data, make_engine, epochs, halvings):
    watch = Watch()
    engine = make_engine(callbacks=[watch], limit_train_batches=1, limit_val_batches=1)
    engine.fit(ARNet(**{**TINY, "epochs": epochs, "lr": 0.01}), datamodule=make_data())
    assert watch.rates == pytest.approx([0.01 * 0.5**halving for halving in halvings])


def test_train_error_is_the_mean_over_the_training_images(trained):
    _, model, data = trained
    images = torch.stack([data.train_data[index].image for index in range(len(data.train_data))])
    model.model.eval()
    with torch.no_grad():
        expected = model.model.difference(images).abs().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(model.model.train_error, expected)
    assert expected.unique().numel() == NUM_TRANSFORMS


def test_random_flip(images, make_data, make_engine, monkeypatch):
    seen = []
    step = ARNetModel.restoration_step
    monkeypatch.setattr(
        ARNetModel, "restoration_step", lambda model, images: seen.append(images) or step(model, images)
    )
    inputs = []

    class Inputs(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            inputs.append(batch.image.clone())

    for flip in (False, True):
        seen.clear()
        inputs.clear()
        engine = make_engine(callbacks=[Inputs()])
        engine.fit(ARNet(**TINY, random_flip=flip), datamodule=make_data())
        flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(torch.cat(seen), torch.cat(inputs), strict=True)]
        same = [torch.equal(new, old) for new, old in zip(torch.cat(seen), torch.cat(inputs), strict=True)]
        assert all(one != other for one, other in zip(flipped, same, strict=True))
        assert (0.2 < np.mean(flipped) < 0.8) if flip else all(same)


def differing(first, second):
    first, second = first.state_dict(), second.state_dict()
    return {name for name in first if not torch.equal(first[name].nan_to_num(), second[name].nan_to_num())}


def test_a_resumed_run_ends_like_the_whole_one(make_data, make_engine, tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path / "every", filename="{epoch}", save_top_k=-1)
    whole, watch = ARNet(**{**TINY, "epochs": 4, "seed": None}, random_flip=True), Watch()
    make_engine(callbacks=[keep, watch]).fit(whole, datamodule=make_data())
    for epoch in (0, 2):
        model, again = ARNet(), Watch()  # the checkpoint knows its arguments
        engine = make_engine(callbacks=[again])
        engine.fit(model, datamodule=make_data(), ckpt_path=tmp_path / "every" / f"epoch={epoch}.ckpt")
        assert again.rates == watch.rates[epoch + 1 :]
        assert not differing(whole, model)


def test_a_finished_run_goes_on_with_more_epochs(trained, make_data, make_engine):
    engine, _, _ = trained
    model = ARNet(**{**TINY, "epochs": 3})
    other = make_engine()
    other.fit(model, datamodule=make_data(), ckpt_path=engine.best_model_path)
    assert other.trainer.current_epoch == 3
    with pytest.raises(RuntimeError, match="use a new Engine"):
        engine.fit(model, datamodule=make_data())


# ----------------------------------------------------------------------------------- evaluation, checkpoints and export


def test_pixels_are_judged_where_there_are_masks(make_engine, tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "parts"
    for name in ("good", "bad", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(24):
        Image.fromarray(landscape(rng)).save(root / "good" / f"{index:02d}.png")
    for index in range(6):
        picture, mask = landscape(rng), np.zeros((36, 40), np.uint8)
        top, left = rng.integers(4, 20, 2)
        picture[top : top + 8, left : left + 8] = (220, 20, 60)
        mask[top : top + 8, left : left + 8] = 255
        Image.fromarray(picture).save(root / "bad" / f"{index:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index:02d}.png")
    data = Folder(
        "parts", "good", root, abnormal_dir="bad", mask_dir="masks", train_batch_size=4, eval_batch_size=4,
        num_workers=0, val_split_mode="from_train", val_split_ratio=0.2,
    )  # fmt: skip
    engine, model = make_engine(), ARNet(**{**TINY, "epochs": 10, "width": 8})
    engine.fit(model, datamodule=data)
    (metrics,) = engine.test(model, datamodule=data)
    assert metrics["pixel_AUROC"] > 0.9
    assert list((tmp_path / "results").rglob("images/**/*.png"))
