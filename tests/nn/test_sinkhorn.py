"""Optimal assignment: marginals, equivariance, extreme inputs, several processes."""

import itertools
import math

import pytest
import torch
from extremes import numbers, seeds, tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist

from anomalib_defend.nn.sinkhorn import perplexity, sinkhorn

EXTREME = 1e4
scores_of_any_size = tensors(st.integers(1, 40), st.integers(1, 12), low=-EXTREME, high=EXTREME)


def random_scores(tokens, prototypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, prototypes, generator=generator) * 2 - 1


def column_error(assignment):
    """Largest deviation of a prototype's mass from its share."""
    tokens, prototypes = assignment.shape
    return (assignment.sum(0) * prototypes / tokens - 1).abs().max().item()


def mass_error(assignment):
    """Share of the mass that prototypes have beyond their own share."""
    tokens, prototypes = assignment.shape
    return (assignment.sum(0) / tokens - 1 / prototypes).clamp_min(0).sum().item()


@numbers
@given(scores_of_any_size, st.integers(1, 6))
def test_rows_sum_to_one_and_nothing_is_negative(scores, iterations):
    assignment = sinkhorn(scores, iterations=iterations)
    assert assignment.shape == scores.shape
    assert assignment.dtype == torch.float32
    assert (assignment >= 0).all()  # not true of NaN
    torch.testing.assert_close(assignment.sum(1), torch.ones(len(scores)), atol=1e-5, rtol=0)


@numbers
@given(scores_of_any_size)
def test_no_iteration_moves_mass_to_the_wrong_prototype(scores):
    errors = [mass_error(sinkhorn(scores, iterations=i)) for i in range(1, 6)]
    for before, after in itertools.pairwise(errors):
        assert after <= before + 1e-5


@numbers
@given(st.integers(64, 400), st.integers(1, 12), seeds)
def test_three_iterations_give_the_prototypes_nearly_equal_masses(tokens, prototypes, seed):
    assert mass_error(sinkhorn(random_scores(tokens, prototypes, seed))) < 0.15


@numbers
@given(st.integers(1, 11), seeds)
def test_fewer_tokens_than_prototypes(tokens, seed):
    scores = random_scores(tokens, 12, seed)
    torch.testing.assert_close(sinkhorn(scores).sum(1), torch.ones(tokens), atol=1e-5, rtol=0)
    assert mass_error(sinkhorn(scores, iterations=300)) < 0.01


def test_more_iterations_bring_the_prototypes_masses_together():
    # a skew that no single normalisation removes: all tokens prefer the first prototypes
    scores = 0.2 * random_scores(64, 6) + torch.linspace(0.2, 0, 6)
    errors = [column_error(sinkhorn(scores, iterations=i)) for i in (1, 3, 10, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3


def test_an_assignment_of_equal_masses_is_a_fixed_point():
    scores = torch.eye(4).repeat(8, 1)
    torch.testing.assert_close(sinkhorn(scores), (scores / 0.05).softmax(dim=1), atol=1e-6, rtol=1e-5)


@numbers
@given(scores_of_any_size, st.randoms(use_true_random=False))
def test_permuting_tokens_and_prototypes_permutes_the_assignment(scores, random):
    rows, columns = (torch.tensor(random.sample(range(n), n)) for n in scores.shape)
    expected = sinkhorn(scores)[rows][:, columns]
    # numbers of 4e5, which ten thousand / epsilon leads to, are 0.03 apart in float32: a ratio of that is possible
    atol = 1e-4 if scores.abs().max() <= 10 else 0.1
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns]), expected, atol=atol, rtol=1e-3)


def test_a_constant_added_to_a_token_or_a_prototype_changes_nothing():
    scores = random_scores(20, 5)
    shifted = scores + 0.3 * random_scores(20, 1, seed=1) + 0.3 * random_scores(1, 5, seed=2)
    torch.testing.assert_close(sinkhorn(shifted, iterations=200), sinkhorn(scores, iterations=200), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_and_half_precision_scores_stay_finite(dtype):
    scores = (random_scores(30, 4).sign() * EXTREME).to(dtype)
    scores[0] = EXTREME
    scores[1] = -EXTREME
    assignment = sinkhorn(scores)
    assert assignment.dtype == torch.float32
    assert assignment.isfinite().all()
    torch.testing.assert_close(assignment.sum(1), torch.ones(30), atol=1e-5, rtol=0)


def test_collapsed_scores_are_spread_over_all_prototypes():
    scores = torch.zeros(32, 4)
    scores[:, 0] = 1 + 0.01 * torch.arange(32)  # all tokens are nearest to the first prototype
    assert column_error(sinkhorn(scores, iterations=50)) < 0.05


def test_autocast_does_not_change_it():
    scores = random_scores(50, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = sinkhorn(scores)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, sinkhorn(scores))


def test_no_gradient_flows_through_it():
    assert not sinkhorn(random_scores(5, 3).requires_grad_()).requires_grad


def in_process(rank, folder, parts):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=len(parts))
    try:
        torch.save([sinkhorn(part[rank]) for part in zip(*parts, strict=True)], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_processes_together_equal_one(tmp_path):
    # the processes have different numbers of tokens, and in the second case very different scores
    whole = [random_scores(24, 4), torch.cat([random_scores(9, 4) * 50, random_scores(15, 4, seed=1) - 50])]
    parts = [[scores[:9] for scores in whole], [scores[9:] for scores in whole]]
    torch.multiprocessing.spawn(in_process, args=(str(tmp_path), parts), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for scores, first, second in zip(whole, *results, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), sinkhorn(scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prototypes", [1, 2, 7])
def test_perplexity_is_one_for_collapse_and_k_for_uniform_use(prototypes):
    collapse = torch.zeros(prototypes, dtype=torch.long)
    collapse[-1] = 100
    assert perplexity(collapse).item() == pytest.approx(1)
    assert perplexity(torch.full((prototypes,), 13)).item() == pytest.approx(prototypes, rel=1e-5)


def test_perplexity_of_unequal_use_lies_between():
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(expected)
