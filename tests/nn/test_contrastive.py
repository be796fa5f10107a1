"""Views for contrastive learning: of each image its own, in [0, 1] before they are normalised."""

import pytest
import torch
from torchvision.transforms import v2

from anomalib_defend.nn.contrastive import contrastive_view, two_views

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_views_differ_from_image_to_image_and_from_each_other():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    images = torch.stack([ramp] * 4)
    first, second = two_views(images, (0.0,) * 3, (1.0,) * 3)
    assert first.shape == second.shape == images.shape
    views = [*first, *second]
    assert all(not torch.equal(a, b) for index, a in enumerate(views) for b in views[:index])
    torch.manual_seed(0)
    assert torch.equal(first, two_views(images, (0.0,) * 3, (1.0,) * 3)[0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_views_are_normalised_as_the_images_were(value):
    """What is black stays black; what is white is at most darker."""
    shift, scale = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    images = ((torch.full((3, 3, 32, 32), value) - shift) / scale).float()
    for views in two_views(images, MEAN, STD):
        plain = views * scale + shift
        assert plain.min() > -1e-5
        assert plain.max() < 1 + 1e-5
        if value == 0:
            torch.testing.assert_close(plain, torch.zeros_like(plain), rtol=0, atol=1e-5)


def test_the_augmentations_are_the_published_ones():
    """Crop to a scale of 0.2 to 1; jitter 0.4, 0.4, 0.4, 0.1 (p 0.8); grey (p 0.2); blur of 0.1 to 2 (p 0.5); flip."""
    crop, colours, grey, blur, flip = contrastive_view((24, 32)).transforms
    assert isinstance(crop, v2.RandomResizedCrop)
    assert (list(crop.size), tuple(crop.scale)) == ([24, 32], (0.2, 1.0))
    (jitter,) = colours.transforms
    assert isinstance(jitter, v2.ColorJitter)
    assert isinstance(colours, v2.RandomApply)
    assert colours.p == 0.8
    for name in ("brightness", "contrast", "saturation"):
        assert tuple(getattr(jitter, name)) == pytest.approx((0.6, 1.4))
    assert tuple(jitter.hue) == pytest.approx((-0.1, 0.1))
    assert isinstance(grey, v2.RandomGrayscale)
    assert grey.p == 0.2
    (gaussian,) = blur.transforms
    assert isinstance(gaussian, v2.GaussianBlur)
    assert isinstance(blur, v2.RandomApply)
    assert (blur.p, tuple(gaussian.sigma)) == (0.5, (0.1, 2.0))
    assert min(gaussian.kernel_size) >= 2 * 3 * 2 + 1  # three of the largest deviations to each side
    assert isinstance(flip, v2.RandomHorizontalFlip)
    assert flip.p == 0.5
