"""Views for contrastive learning: of each image its own, in [0, 1] before they are normalised."""

import pytest
import torch

from anomalib_defend.nn.contrastive import two_views

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
