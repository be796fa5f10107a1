"""Exact nearest neighbours (``nn.normality.neighbors``)."""

import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from anomalib_defend.nn.normality.neighbors import neighbor_distance


def unit_vectors(number, seed):
    """Near each other, as the features of images of one kind are."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(1 + 0.1 * torch.randn(number, 64, generator=generator), dim=1)


def test_distances_are_those_of_an_exact_search():
    memory, features = unit_vectors(50, 0), unit_vectors(20, 1)
    expected, _ = NearestNeighbors(n_neighbors=2).fit(memory).kneighbors(features)
    distance = neighbor_distance(features, memory, 2)
    torch.testing.assert_close(distance.double(), torch.from_numpy((expected**2).mean(axis=1)), rtol=1e-4, atol=1e-6)


def test_a_small_memory_is_used_whole():
    memory, features = unit_vectors(1, 0), unit_vectors(3, 1)
    assert torch.equal(neighbor_distance(features, memory, 2), neighbor_distance(features, memory, 1))


def test_half_precision_around_it_changes_nothing():
    """It would give near images the same score."""
    memory, features = unit_vectors(50, 0), unit_vectors(500, 1)
    with torch.autocast("cpu", torch.bfloat16):
        distance = neighbor_distance(features, memory, 2)
    assert torch.equal(distance, neighbor_distance(features, memory, 2))
    assert len(distance.unique()) > 480  # bfloat16 leaves four
