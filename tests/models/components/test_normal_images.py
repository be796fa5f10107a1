"""The one pass over the normal images: order, augmentations, limits, and that nothing of the training changes."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms import v2

from anomalib_defend import DN2, SemanticFolder
from anomalib_defend.models.components.normal_images import NormalImages, not_deterministic
from anomalib_defend.pre_processing import ResizeNormalize
from encoders import MINIATURE


@pytest.fixture
def make_data(write):
    root = write("SemanticFolder")
    defaults = {"category": "cat", "num_workers": 0, "train_batch_size": 3, "eval_batch_size": 4}
    return lambda **kwargs: SemanticFolder(root, **{**defaults, **kwargs})


@pytest.fixture
def make_images(make_data):
    """The pass beside a trainer that does nothing but name its data."""

    def make(limit=None, bar=None, pre_processor=None, **kwargs):
        data = make_data(**kwargs)
        data.setup()
        trainer = SimpleNamespace(
            train_dataloader=data.train_dataloader(),
            world_size=1,
            num_devices=1,
            global_rank=0,
            local_rank=0,
            strategy=SimpleNamespace(batch_to_device=lambda batch: batch, root_device=torch.device("cpu")),
            precision_plugin=SimpleNamespace(forward_context=nullcontext),
            progress_bar_callback=bar,
        )
        model = SimpleNamespace(pre_processor=pre_processor or ResizeNormalize((32, 32), (0, 0, 0), (1, 1, 1)))
        return NormalImages(trainer, model, limit)

    return make


def mean_colour(_rows, batch):
    return batch.image.mean(dim=(2, 3))


def test_features_are_in_the_order_of_the_data_set(make_images):
    images = make_images()
    seen = []

    def encode(rows, batch):
        seen.extend(zip(rows, batch.image_path, strict=True))
        return mean_colour(rows, batch)

    features = images.features(encode, "test", nn.Identity())
    assert [path for _, path in seen] == images.paths
    assert [row for row, _ in seen] == list(range(len(images)))
    expected = [images.dataset[row].image for row in range(len(images))]
    resize = v2.Resize((32, 32), antialias=True)
    torch.testing.assert_close(features, torch.stack([resize(image).mean(dim=(1, 2)) for image in expected]))


def test_augmentations_are_left_out(make_images):
    plain, darker = make_images(), make_images(train_augmentations=v2.ColorJitter(brightness=(0.1, 0.2)))
    assert darker.dataset.augmentations is not None
    expected = plain.features(mean_colour, "test", nn.Identity())
    # resized as the pre-processor does, but before what is rounded to bytes there
    torch.testing.assert_close(darker.features(mean_colour, "test", nn.Identity()), expected, rtol=0, atol=1 / 255)
    assert darker.dataset.augmentations is not None


@pytest.mark.parametrize(
    ("transform", "names"),
    [
        (None, []),
        (v2.Resize(8), []),
        (v2.Compose([v2.Resize(8), v2.Compose([v2.CenterCrop(8), v2.Normalize([0.5], [0.5])])]), []),
        (v2.RandomHorizontalFlip(), ["RandomHorizontalFlip"]),
        (v2.Compose([v2.Resize(8), v2.RandomApply([v2.Resize(4)]), v2.ColorJitter()]), ["RandomApply", "ColorJitter"]),
    ],
)
def test_what_depends_on_chance(transform, names):
    assert not_deterministic(transform) == names


def test_rows_are_spread_evenly(make_images):
    images = make_images()
    count = len(images)
    assert images.rows() == list(range(count))
    assert images.rows(1) == [0]
    assert make_images(limit=3).rows() == [0, 2, 4]
    assert make_images(limit=3).rows(2) == [0, 3]
    assert make_images(limit=100).rows() == list(range(count))


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 7),
        ({"limit_train_batches": 1}, 3),
        ({"limit_train_batches": 2}, 6),
        ({"limit_train_batches": 0.5}, 3),
        ({"limit_train_batches": 100}, 7),
        ({"fast_dev_run": True}, 3),
        ({"fast_dev_run": 2}, 6),
    ],
)
def test_as_many_images_as_an_epoch_sees(make_data, make_engine, options, number):
    model, data = DN2(MINIATURE, pre_trained=False), make_data()
    make_engine(**options).fit(model, datamodule=data)
    assert len(data.train_data) == 7
    assert len(model.model.normality.memory) == number


@pytest.mark.parametrize("workers", [0, 1])
def test_random_states_are_left_alone(make_images, workers):
    images = make_images(num_workers=workers)

    def states():
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    before = states()
    images.features(mean_colour, "test", nn.Dropout())
    assert states() == before


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_is_in_its_mode_again(make_images, fails):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Sequential(nn.Dropout()))
    network.train()
    network[1].eval()
    modes = [module.training for module in network.modules()]

    def encode(_rows, batch):
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
        if fails:
            raise OSError("no space left")
        return network(batch.image).mean(dim=(2, 3))

    with pytest.raises(OSError, match="no space left") if fails else nullcontext():
        make_images().features(encode, "test", network)
    assert [module.training for module in network.modules()] == modes
    if not fails:
        assert network[0].num_batches_tracked == 0


def test_a_progress_bar_where_the_trainer_shows_one(make_images, capsys):
    for bar, shown in (
        (SimpleNamespace(is_enabled=True), True),
        (SimpleNamespace(is_enabled=False), False),
        (None, False),
    ):
        make_images(bar=bar).features(mean_colour, "Normal images", nn.Identity())
        assert ("Normal images" in capsys.readouterr().err) == shown


def test_features_are_float32_whatever_the_precision(make_images):
    features = make_images().features(lambda _, batch: batch.image.mean(dim=(2, 3)).bfloat16(), "test", nn.Identity())
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"


def test_a_stock_pre_processor_without_resize(make_images):
    images = make_images(pre_processor=PreProcessor(v2.Normalize([0.0] * 3, [1.0] * 3)))
    assert images.features(mean_colour, "test", nn.Identity()).shape == (7, 3)


def test_other_data_are_refused(make_images):
    images = make_images()
    images._trainer.train_dataloader = [images.loader, images.loader]
    with pytest.raises(TypeError, match=r"reads the normal images from one torch DataLoader .* are a list: give a"):
        _ = images.loader
