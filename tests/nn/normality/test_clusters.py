"""Clusters of the normal images (``nn.normality.clusters``)."""

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import mahalanobis

from anomalib_defend.nn.normality import Clusters
from anomalib_defend.nn.normality.clusters import SHRINKAGE

DIRECTIONS = torch.eye(8)[:3]


def features_of_three(images=60, noise=0.1, seed=0):
    """Features of three categories, of any length."""
    generator = torch.Generator().manual_seed(seed)
    centers = DIRECTIONS[torch.arange(images) % 3]
    features = centers + noise * torch.randn(images, 8, generator=generator)
    return features * (0.5 + torch.rand(images, 1, generator=generator))


def fitted(features, number):
    clusters = Clusters(features.shape[1], number)
    clusters.fit(features)
    return clusters


def test_normal_images_are_nearer_than_others_and_lengths_do_not_matter():
    clusters = fitted(features_of_three(), 3)
    normal, novel = features_of_three(seed=1), -features_of_three(seed=1)
    assert clusters(normal).max() < clusters(novel).min()
    assert clusters(torch.eye(8)[3:4]) > clusters(normal).max()
    torch.testing.assert_close(clusters(7 * normal), clusters(normal))


def test_each_normal_category_keeps_its_own_cluster():
    """The mean of several categories is no category: one cluster is not enough."""
    between = DIRECTIONS.sum(dim=0, keepdim=True)
    several, one = fitted(features_of_three(), 3), fitted(features_of_three(), 1)
    assert several(between) > several(features_of_three(seed=1)).max()
    assert one(between) < one(features_of_three(seed=1)).min()


def test_the_distance_is_mahalanobis_to_the_mean_of_one_cluster():
    features = features_of_three()
    x = F.normalize(features.double(), dim=1)
    center = x.mean(dim=0)
    covariance = (x - center).T @ (x - center) / len(x)
    variance = covariance.trace() / 8
    inverse = torch.linalg.inv((1 - SHRINKAGE) * covariance / variance + SHRINKAGE * torch.eye(8))
    new = F.normalize(features_of_three(seed=1), dim=1).double()
    expected = [mahalanobis(image, center, inverse) ** 2 for image in new]
    torch.testing.assert_close(fitted(features, 1)(new).double(), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_without_covariance_it_is_the_distance_to_the_nearest_centre():
    clusters = Clusters(8, 3, shrinkage=1.0)
    clusters.fit(features_of_three())
    new = features_of_three(seed=1)
    distances = torch.cdist(F.normalize(new, dim=1), clusters.centers).square()
    torch.testing.assert_close(clusters(new), distances.amin(dim=1))


def test_the_same_features_give_the_same_clusters_whatever_was_drawn_before():
    first = fitted(features_of_three(), 5).state_dict()
    torch.rand(3)
    for name, value in fitted(features_of_three(), 5).state_dict().items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("features", [torch.ones(1, 8), torch.ones(5, 8)])
def test_one_image_or_equal_ones_give_finite_distances(features):
    distances = fitted(features, 1)(torch.cat([features[:1], -features[:1]]))
    assert distances.isfinite().all()
    assert distances[0] < distances[1]


def test_fitted_and_reset():
    clusters = fitted(features_of_three(), 3)
    assert clusters.fitted
    clusters.reset()
    assert not clusters.fitted


def test_copies_of_few_images_leave_every_value_finite():
    features = features_of_three(images=3)[torch.arange(40) % 3]
    with pytest.warns(match="distinct clusters"):
        clusters = fitted(features, 10)
    assert all(value.isfinite().all() for value in clusters.state_dict().values())
    assert clusters(features).max() < clusters(-features).min()
