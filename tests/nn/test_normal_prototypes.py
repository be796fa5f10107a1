"""Prototypes of the normal images (``nn.normal_prototypes``)."""

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import mahalanobis

from anomalib_defend.nn.normal_prototypes import SHRINKAGE, NormalPrototypes

DIRECTIONS = torch.eye(8)[:3]


def clusters(images=60, noise=0.1, seed=0):
    """Features of three categories, of any length."""
    generator = torch.Generator().manual_seed(seed)
    centers = DIRECTIONS[torch.arange(images) % 3]
    features = centers + noise * torch.randn(images, 8, generator=generator)
    return features * (0.5 + torch.rand(images, 1, generator=generator))


def fitted(features, number):
    prototypes = NormalPrototypes(features.shape[1], number)
    prototypes.fit(features)
    return prototypes


def test_normal_images_are_nearer_than_others_and_lengths_do_not_matter():
    prototypes = fitted(clusters(), 3)
    normal, novel = clusters(seed=1), -clusters(seed=1)
    assert prototypes(normal).max() < prototypes(novel).min()
    assert prototypes(torch.eye(8)[3:4]) > prototypes(normal).max()
    torch.testing.assert_close(prototypes(7 * normal), prototypes(normal))


def test_each_normal_category_keeps_its_own_prototype():
    """The mean of several categories is no category: one prototype is not enough."""
    between = DIRECTIONS.sum(dim=0, keepdim=True)
    several, one = fitted(clusters(), 3), fitted(clusters(), 1)
    assert several(between) > several(clusters(seed=1)).max()
    assert one(between) < one(clusters(seed=1)).min()


def test_the_distance_is_mahalanobis_to_the_mean_of_one_cluster():
    features = clusters()
    x = F.normalize(features.double(), dim=1)
    center = x.mean(dim=0)
    covariance = (x - center).T @ (x - center) / len(x)
    variance = covariance.trace() / 8
    inverse = torch.linalg.inv((1 - SHRINKAGE) * covariance / variance + SHRINKAGE * torch.eye(8))
    new = F.normalize(clusters(seed=1), dim=1).double()
    expected = [mahalanobis(image, center, inverse) ** 2 for image in new]
    torch.testing.assert_close(fitted(features, 1)(new).double(), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_without_covariance_it_is_the_distance_to_the_nearest_centre():
    prototypes = NormalPrototypes(8, 3, shrinkage=1.0)
    prototypes.fit(clusters())
    new = clusters(seed=1)
    distances = torch.cdist(F.normalize(new, dim=1), prototypes.centers).square()
    torch.testing.assert_close(prototypes(new), distances.amin(dim=1))


def test_the_same_features_give_the_same_prototypes_whatever_was_drawn_before():
    first = fitted(clusters(), 5).state_dict()
    torch.rand(3)
    for name, value in fitted(clusters(), 5).state_dict().items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("features", [torch.ones(1, 8), torch.ones(5, 8)])
def test_one_image_or_equal_ones_give_finite_distances(features):
    distances = fitted(features, 1)(torch.cat([features[:1], -features[:1]]))
    assert distances.isfinite().all()
    assert distances[0] < distances[1]


def test_fitted_and_reset():
    prototypes = fitted(clusters(), 3)
    assert prototypes.fitted
    prototypes.reset()
    assert not prototypes.fitted


def test_copies_of_few_images_leave_every_value_finite():
    features = clusters(images=3)[torch.arange(40) % 3]
    with pytest.warns(match="distinct clusters"):
        prototypes = fitted(features, 10)
    assert all(value.isfinite().all() for value in prototypes.state_dict().values())
    assert prototypes(features).max() < prototypes(-features).min()
