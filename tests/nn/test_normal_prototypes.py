"""Prototypes of the normal images (``nn.normal_prototypes``)."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_normal

from anomalib_defend.nn.normal_prototypes import CONCENTRATION, SHRINKAGE, NormalPrototypes

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


def test_the_energy_is_that_of_a_mixture_of_gaussians():
    features = clusters()
    x = F.normalize(features.double(), dim=1)
    center = x.mean(dim=0)
    covariance = (x - center).T @ (x - center) / len(x)
    variance = covariance.trace() / 8
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * torch.eye(8)
    # the same Gaussian up to its height, which is no part of the energy
    gaussian = multivariate_normal(center, covariance * (1 / variance / CONCENTRATION))
    new = F.normalize(clusters(seed=1), dim=1)
    expected = torch.from_numpy(gaussian.logpdf(center) - gaussian.logpdf(new))
    torch.testing.assert_close(fitted(features, 1)(new).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_same_features_give_the_same_prototypes_whatever_was_drawn_before():
    first = fitted(clusters(), 5).state_dict()
    torch.rand(3)
    for name, value in fitted(clusters(), 5).state_dict().items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("features", [torch.ones(1, 8), torch.ones(5, 8)])
def test_one_image_or_equal_ones_give_finite_energies(features):
    energies = fitted(features, 1)(torch.cat([features[:1], -features[:1]]))
    assert energies.isfinite().all()
    assert energies[0] < energies[1]


def test_fitted_and_reset():
    prototypes = fitted(clusters(), 3)
    assert prototypes.fitted
    assert math.isclose(prototypes.log_weights.exp().sum(), 1, abs_tol=1e-6)
    prototypes.reset()
    assert not prototypes.fitted


def test_copies_of_few_images_leave_clusters_empty_but_every_value_finite():
    features = clusters(images=3)[torch.arange(40) % 3]
    with pytest.warns(match="distinct clusters"):
        prototypes = fitted(features, 10)
    assert all(value.isfinite().all() for value in prototypes.state_dict().values())
    assert prototypes(features).max() < prototypes(-features).min()
