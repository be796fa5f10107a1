"""Which patches the student sees."""

from itertools import pairwise, permutations

import pytest
import torch
from extremes import numbers, seeds, tensors
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from anomalib_defend.nn.masking import num_kept, sample_patches

WEIGHTS = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
DRAWS = 20_000


def assert_frequencies(observed, expected):
    """Chi-square test: a correct sampler fails it once in 10,000 seeds, and the seed is fixed."""
    statistic = ((observed - expected).square() / expected).sum().item()
    assert statistic < chi2.ppf(0.9999, df=len(expected) - 1)


def inclusion_probabilities(weights, count):
    """Of successive draws without replacement, each in proportion to what is left; by enumeration."""
    included = [0.0] * len(weights)
    for order in permutations(range(len(weights)), count):
        left, probability = sum(weights), 1.0
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        for item in order:
            included[item] += probability
    return torch.tensor(included)


@numbers
@given(tensors(st.integers(1, 3), st.integers(1, 50), low=0), st.floats(0, 0.99), seeds)
def test_kept_patches_are_unique_ascending_and_as_many_as_asked_for(weights, ratio, seed):
    images, patches = weights.shape
    count = num_kept(patches, ratio)
    assert 1 <= count <= patches
    assert abs(count - patches * (1 - ratio)) <= max(0.5, 1 - patches * (1 - ratio))
    torch.manual_seed(seed)
    keep = sample_patches(weights, count)
    assert keep.shape == (images, count)
    assert keep.dtype == torch.long
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0
    assert keep.max() < patches


@numbers
@given(tensors(1, st.integers(1, 50), low=0), st.integers(1, 50), seeds)
def test_attention_goes_before_no_attention(weights, count, seed):
    weights = torch.where(weights < 1e-6, 0, weights)  # below, half precision has no numbers
    count = min(count, weights.numel())
    torch.manual_seed(seed)
    kept = weights[0, sample_patches(weights, count)[0]]
    assert (kept > 0).sum() == min(count, (weights > 0).sum())


@numbers
@given(tensors(2, st.integers(2, 12), low=0), seeds)
def test_keeping_more_keeps_what_was_kept(weights, seed):
    kept = []
    for count in range(1, weights.shape[1] + 1):
        torch.manual_seed(seed)
        kept.append([set(row) for row in sample_patches(weights, count).tolist()])
    for fewer, more in pairwise(kept):
        assert all(a < b for a, b in zip(fewer, more, strict=True))


def test_half_of_the_patches():
    assert num_kept(196, 0.5) == 98


def test_ratio_zero_is_the_identity():
    patches = 17
    assert num_kept(patches, 0) == patches
    keep = sample_patches(torch.rand(2, patches), patches)
    assert torch.equal(keep, torch.arange(patches).expand(2, -1))


def test_single_draws_follow_the_attention():
    torch.manual_seed(0)
    drawn = sample_patches(WEIGHTS.expand(DRAWS, -1), 1).flatten()
    assert_frequencies(drawn.bincount(minlength=5).float(), WEIGHTS * DRAWS)


def test_the_scale_of_the_attention_does_not_matter():
    torch.manual_seed(0)
    drawn = sample_patches(1e-6 * WEIGHTS.expand(DRAWS, -1), 1).flatten()
    assert_frequencies(drawn.bincount(minlength=5).float(), WEIGHTS * DRAWS)


def test_draws_without_replacement_follow_the_attention():
    torch.manual_seed(0)
    observed = sample_patches(WEIGHTS.expand(DRAWS, -1), 3).flatten().bincount(minlength=5) / DRAWS
    expected = inclusion_probabilities(WEIGHTS.tolist(), 3)
    torch.testing.assert_close(observed, expected, atol=0.015, rtol=0)  # about 4 standard deviations


def test_every_image_follows_its_own_attention():
    weights = torch.zeros(2, 6)
    weights[0, :3] = weights[1, 3:] = 1
    assert sample_patches(weights, 3).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_without_attention_are_never_kept_while_others_are_left(dtype):
    torch.manual_seed(0)
    weights = torch.tensor([0, 1e-5, 0, 0.9, 0, 1e-3, 0, 0.1], dtype=dtype).expand(5000, -1)
    assert torch.equal(sample_patches(weights, 4), torch.tensor([1, 3, 5, 7]).expand(5000, -1))
    # and they fill up what is missing
    assert {1, 3, 5, 7} < set(sample_patches(weights[:1], 6).flatten().tolist())


@pytest.mark.parametrize("value", [1.0, 1e-3, 0.0])
def test_equal_weights_draw_uniformly(value):
    torch.manual_seed(0)
    drawn = sample_patches(torch.full((DRAWS, 8), value), 4).flatten().bincount(minlength=8) / DRAWS
    torch.testing.assert_close(drawn, torch.full((8,), 0.5), atol=0.015, rtol=0)


def test_draws_differ_from_call_to_call_and_repeat_with_the_seed():
    weights = torch.ones(4, 30)
    torch.manual_seed(3)
    first, second = sample_patches(weights, 15), sample_patches(weights, 15)
    torch.manual_seed(3)
    assert torch.equal(sample_patches(weights, 15), first)
    assert not torch.equal(first, second)
