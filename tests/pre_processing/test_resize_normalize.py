"""The exported resize is the engine's resize, and a checkpoint changes it in place."""

import pytest
import torch
from anomalib.data import ImageBatch
from torchvision.transforms.v2 import Compose, Resize
from torchvision.transforms.v2.functional import resize

from anomalib_defend.nn.resize import interpolation_weights
from anomalib_defend.pre_processing import AntialiasedResize, ResizeNormalize
from rounding import rounding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((375, 500), (224, 224)),  # a photo
        ((500, 333), (64, 96)),
        ((17, 23), (64, 48)),  # smaller than the model's input
        ((40, 200), (96, 64)),  # smaller in one direction, larger in the other
        ((64, 64), (64, 64)),
        ((1, 5), (8, 8)),
        ((3000, 4), (37, 7)),  # as high as a large photo
    ],
)
def test_it_equals_torchvisions_antialiased_resize(old, new):
    images = torch.rand(2, 3, *old)
    expected = resize(images.double(), list(new), antialias=True).float()  # in float32 its own positions are rounded
    torch.testing.assert_close(
        AntialiasedResize(Resize(list(new)))(images), expected, atol=rounding(2 * 40), rtol=0
    )  # terms


def test_without_antialiasing_a_large_photo_differs():
    images = torch.rand(1, 3, 375, 500)
    result = AntialiasedResize(Resize([64, 64]))(images)
    assert (result - resize(images, [64, 64], antialias=False)).abs().max() > 0.1


def test_weights_survive_bfloat16():
    """OpenVINO's default precision: positions beyond 256 have to stay apart, and no row may be lost or too bright."""
    whole, rest = interpolation_weights(3000, 224, torch.zeros(1, dtype=torch.bfloat16))
    expected = sum(interpolation_weights(3000, 224, torch.zeros(1)))
    torch.testing.assert_close(whole.float() + rest.float(), expected, atol=5e-3, rtol=0)
    torch.testing.assert_close((whole.float() + rest.float()).sum(dim=1), torch.full((224,), 256.0), atol=0.05, rtol=0)


def test_a_constant_image_stays_constant():
    result = AntialiasedResize(Resize([33, 57]))(torch.full((1, 3, 101, 77), 0.7))
    torch.testing.assert_close(result, torch.full((1, 3, 33, 57), 0.7), atol=1e-5, rtol=0)


def test_the_exported_transform_equals_the_engines():
    processor = ResizeNormalize((32, 48), MEAN, STD)
    images = torch.rand(2, 3, 70, 50)
    batch = ImageBatch(image=images)
    processor.on_test_batch_start(None, None, batch, 0)
    assert batch.image.shape == (2, 3, 32, 48)
    torch.testing.assert_close(processor(images), batch.image, atol=1e-4, rtol=0)
    expected = (resize(images, [32, 48], antialias=True) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    torch.testing.assert_close(batch.image, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_changes_the_transforms_in_place():
    saved = ResizeNormalize((32, 48), MEAN, STD).checkpoint_config()
    processor = ResizeNormalize((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transform, handed_out = processor.transform, processor.transform.transforms[0]
    assert isinstance(transform, Compose)
    processor.load_checkpoint_config(saved)
    assert processor.transform is transform
    assert processor.transform.transforms[0] is handed_out
    images = torch.rand(1, 3, 60, 60)
    assert handed_out(images).shape == (1, 3, 32, 48)
    assert processor.checkpoint_config() == saved
    reference = ResizeNormalize((32, 48), MEAN, STD)
    assert torch.equal(processor.transform(images), reference.transform(images))
    assert torch.equal(processor(images), reference(images))


def test_the_checkpoint_is_plain_data():
    config = ResizeNormalize((32, 48), MEAN, STD).checkpoint_config()
    assert config == {"image_size": [32, 48], "mean": list(MEAN), "std": list(STD)}
    assert all(type(value) is list for value in config.values())
