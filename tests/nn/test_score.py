"""From tokens to score and map."""

import torch
from extremes import numbers, seeds, sizes, tensors
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.nn.distance import attended, feature_distance, l2_normalize, normalize_features
from anomalib_defend.nn.score import anomaly_map

CHANNELS = 8
tokens = tensors(2, st.integers(1, 12), CHANNELS)


@numbers
@given(tokens)
def test_normalised_tokens_have_length_one_or_are_zero(features):
    lengths = l2_normalize(features).norm(dim=-1)
    assert lengths.dtype == torch.float32
    expected = (features.float().norm(dim=-1) > 1e-9).float()
    certain = features.float().norm(dim=-1).sub(1e-9).abs() > 1e-9
    torch.testing.assert_close(lengths[certain], expected[certain], atol=1e-5, rtol=0)


@numbers
@given(tokens, seeds)
def test_distances_lie_between_zero_and_four(student, seed):
    torch.manual_seed(seed)
    for teacher in (torch.randn(student.shape), -student, student):
        pair = [normalize_features(features, "l2") for features in (student, teacher)]
        distance = feature_distance(*pair, "mse")  # type: ignore[call-arg]
        assert distance.shape == student.shape[:-1]
        assert distance.min() >= 0  # not true of NaN
        assert distance.max() <= 4 + 1e-5
        torch.testing.assert_close(feature_distance(*reversed(pair), "mse"), distance)  # type: ignore[call-arg]
    assert distance.max() == 0


@numbers
@given(tokens, st.floats(1e-2, 1e2), seeds)
def test_the_length_of_tokens_does_not_matter(features, factor, seed):
    features = torch.where(features.float().norm(dim=-1, keepdim=True) < 1e-3, 1, features.float())
    torch.testing.assert_close(l2_normalize(factor * features), l2_normalize(features), atol=1e-5, rtol=0)


@numbers
@given(sizes, st.integers(1, 9), tensors(1, 1, low=0, high=4), seeds)
def test_the_mean_of_the_map_is_the_score_and_its_range_that_of_the_patches(grid, patch, first, seed):
    distances = 4 * torch.rand(2, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    distances[0, 0] = first.float()
    size = (grid[0] * patch, grid[1] * patch)
    maps = anomaly_map(distances, grid, size)
    assert maps.shape == (2, 1, *size)
    torch.testing.assert_close(maps.mean(dim=(1, 2, 3)), distances.mean(dim=1), atol=1e-4, rtol=0)
    for part, patches in zip(maps, distances, strict=True):
        assert part.min() >= patches.min() - 1e-5
        assert part.max() <= patches.max() + 1e-5


@numbers
@given(sizes, st.integers(1, 5), seeds)
def test_the_map_shows_each_patch_where_it_is(grid, patch, seed):
    patch = 2 * patch - 1  # an odd patch has a middle
    distances = 4 * torch.rand(1, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    maps = anomaly_map(distances, grid, (grid[0] * patch, grid[1] * patch))
    centres = maps[0, 0, patch // 2 :: patch, patch // 2 :: patch]
    torch.testing.assert_close(centres, distances.reshape(grid), atol=1e-5, rtol=0)


@numbers
@given(tensors(2, st.integers(1, 12)), seeds)
def test_the_mean_of_attended_distances_is_the_weighted_mean(distances, seed):
    torch.manual_seed(seed)
    attention = torch.rand(distances.shape).clamp_min(1e-6) / distances.shape[1]
    shares = attended(distances.double(), attention.double())
    for image in range(len(distances)):
        total = weight = 0.0
        for distance, share in zip(distances[image].tolist(), attention[image].tolist(), strict=True):
            total, weight = total + distance * share, weight + share
        expected = torch.tensor(total / weight, dtype=torch.float64)
        torch.testing.assert_close(shares[image].mean(), expected, rtol=1e-9, atol=1e-9 * float(distances.abs().max()))
    even = attended(distances.double(), torch.full(distances.shape, 0.01))
    torch.testing.assert_close(even, distances.double(), rtol=1e-5, atol=0)
