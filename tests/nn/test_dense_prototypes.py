"""Projection head and similarity to the prototypes."""

import pytest
import torch
import torch.nn.functional as F
from extremes import numbers, seeds, tensors
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.nn.dense_prototypes import CANCELLED, EMBED_DIM, PrototypeHead, similarity, upsampled_similarity
from rounding import rounding


def naive(embeddings, prototypes, size):
    """norm(upsample(z)) C^T, as the method states it."""
    upsampled = F.interpolate(embeddings.permute(0, 3, 1, 2), size=size, mode="bilinear")
    return torch.einsum("mdhw,kd->mhwk", F.normalize(upsampled, dim=1), prototypes)


@pytest.mark.parametrize(
    ("grid", "size"),
    [((6, 6), (48, 48)), ((3, 5), (24, 40)), ((2, 4), (2, 4)), ((3, 3), (7, 8)), ((1, 1), (4, 4)), ((1, 3), (8, 9))],
)
def test_upsampled_similarity_equals_the_naive_one(grid, size):
    torch.manual_seed(0)
    embeddings = torch.randn(3, *grid, 16, requires_grad=True)
    prototypes = torch.randn(5, 16, requires_grad=True)
    result, expected = upsampled_similarity(embeddings, prototypes, size), naive(embeddings, prototypes, size)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((result * weight).sum(), (embeddings, prototypes))
    references = torch.autograd.grad((expected * weight).sum(), (embeddings, prototypes))
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-3, rtol=1e-4)


def test_similarity_is_a_cosine_for_unit_prototypes():
    torch.manual_seed(0)
    embeddings, prototypes = torch.randn(2, 7, 8), F.normalize(torch.randn(4, 8), dim=1)
    expected = F.cosine_similarity(embeddings[:, :, None], prototypes[None, None], dim=-1)
    atol = rounding(3 * 8)  # a product and two lengths of eight terms each
    torch.testing.assert_close(similarity(embeddings, prototypes), expected, atol=atol, rtol=0)
    torch.testing.assert_close(similarity(1e3 * embeddings, prototypes), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("function", [similarity, lambda z, c: upsampled_similarity(z, c, (8, 8))])
def test_similarities_are_float32_under_autocast(function):
    torch.manual_seed(0)
    embeddings, prototypes = torch.randn(2, 3, 3, 8), torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = function(embeddings, prototypes)
        from_half = function(embeddings.bfloat16(), prototypes)
    assert result.dtype == from_half.dtype == torch.float32
    assert torch.equal(result, function(embeddings, prototypes))


def test_embeddings_of_length_zero_stay_finite():
    embeddings = torch.zeros(1, 2, 2, 8, requires_grad=True)
    upsampled_similarity(embeddings, torch.randn(3, 8), (4, 4)).sum().backward()
    assert embeddings.grad.isfinite().all()
    assert similarity(torch.zeros(2, 8), torch.randn(3, 8)).isfinite().all()


@numbers
@given(tensors(1, 1, st.integers(1, 4), 4), st.tuples(st.integers(1, 9), st.integers(1, 9)), seeds)
def test_similarities_never_leave_the_range_of_a_cosine(embeddings, size, seed):
    torch.manual_seed(seed)
    prototypes = F.normalize(torch.randn(3, 4), dim=1)
    opposite = torch.cat([embeddings, -embeddings * (1 + 1e-3 * torch.randn(4))], dim=1)  # nothing is left half-way
    # just above what counts as cancelled, the squared length is so much rounding: 8 products are summed
    half_way = rounding(8) / CANCELLED / 2
    upsampled = upsampled_similarity(opposite, prototypes, size)
    for values, beyond in ((similarity(embeddings, prototypes), 1e-3), (upsampled, half_way)):
        assert values.dtype == torch.float32
        assert values.abs().max() <= 1 + beyond  # not true of NaN


@pytest.mark.parametrize("length", [1.0, 1e2, 1e4])
def test_opposite_neighbours_have_no_direction_half_way(length):
    embeddings = length * torch.randn(2, 2, 2, 256)
    embeddings[:, 1] = -embeddings[:, 0]
    middle = upsampled_similarity(embeddings, F.normalize(torch.randn(5, 256), dim=1), (3, 3))[:, 1]
    assert middle.abs().max() < 1e-3


def test_prototypes_are_normalised_in_place():
    head = PrototypeHead(12, 7)
    parameter, before = head.prototypes, head.prototypes.detach().clone()
    assert (before.norm(dim=1) - 1).abs().max() > 0.1
    head.normalize_prototypes()
    assert head.prototypes is parameter
    assert parameter.requires_grad
    torch.testing.assert_close(parameter.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(F.cosine_similarity(parameter, before), torch.ones(7))


def test_the_head_is_as_specified():
    head = PrototypeHead(12, 7)
    linear = [layer for layer in head.mlp if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12, 2048), (2048, 2048), (2048, 256)]
    assert all(layer.bias is not None for layer in linear)
    assert isinstance(head.mlp[-1], torch.nn.Linear)
    assert head(torch.randn(2, 3, 12)).shape == (2, 3, EMBED_DIM)
    assert head.prototypes.shape == (7, EMBED_DIM)


def test_reset_draws_everything_anew_and_follows_the_seed():
    head = PrototypeHead(12, 7)

    def drawn(seed):
        torch.manual_seed(seed)
        head.reset_parameters()
        return [parameter.detach().clone() for parameter in head.parameters()]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert first[0].std().item() == pytest.approx(1, abs=0.1)  # prototypes from N(0, I); parameters come first
