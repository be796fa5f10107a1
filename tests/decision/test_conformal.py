"""p-values, thresholds and selections keep what they promise; every tolerance is stated in standard errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.decision.conformal import (
    allowed_rank,
    expected_count,
    expected_rate,
    least_fdr,
    needed_images,
    p_values,
    select,
)

DRAWS = {
    "Gaussian": lambda rng, *shape: rng.normal(size=shape),
    "heavy tail": lambda rng, *shape: np.exp(3 * rng.normal(size=shape)),
    "five values": lambda rng, *shape: rng.integers(0, 5, shape),  # mostly ties
    "bimodal": lambda rng, *shape: np.where(rng.random(shape) < 0.9, 0.0, 4.0) + rng.normal(size=shape),
}


def test_p_values_by_hand() -> None:
    normal = [0.3, 0.1, 0.3, 0.7]
    values = p_values([[0.0, 0.1, 0.2], [0.3, 0.7, 0.8]], normal)
    assert values.tolist() == [[1, 1, 0.8], [0.8, 0.4, 0.2]]  # a tie counts as at least as novel
    assert p_values([np.nan, np.inf, -np.inf], normal).tolist() == [0.2, 0.2, 1]
    assert p_values([3.0], []).tolist() == [1]


@given(st.lists(st.floats(-10, 10, width=32), max_size=30), st.lists(st.floats(-10, 10, width=32), max_size=10))
def test_p_values_are_the_share_that_the_formula_names(normal, scores) -> None:
    expected = [(1 + sum(value >= score for value in normal)) / (len(normal) + 1) for score in scores]
    assert p_values(scores, normal).tolist() == expected


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("count", [9, 45, 99])
def test_p_values_are_valid_for_every_distribution(draw, count) -> None:
    """P(p <= t) <= t over 20,000 validation sets with one new image each: within four standard errors."""
    rng, sets = np.random.default_rng(0), 20_000
    normal, new = draw(rng, sets, count), draw(rng, sets)
    values = (1 + (normal >= new[:, None]).sum(axis=1)) / (count + 1)
    assert values[0] == p_values(new[0], normal[0])
    for level in np.arange(1, count + 1) / (count + 1):
        error = np.sqrt(level * (1 - level) / sets)
        assert (values <= level + 1e-12).mean() <= level + 4 * error
    if draw is DRAWS["Gaussian"]:  # without ties they are exact
        assert abs((values <= 0.5).mean() - 0.5) < 4 * np.sqrt(0.25 / sets)


@pytest.mark.parametrize(("count", "target_fpr"), [(19, 0.05), (45, 0.05), (99, 0.2), (99, 0.29), (9, 0.7)])
def test_a_p_value_below_the_target_is_a_score_above_the_threshold(count, target_fpr) -> None:
    rng = np.random.default_rng(0)
    for normal in (rng.normal(size=count), rng.integers(0, 6, count)):
        threshold = np.sort(normal)[-allowed_rank(count, target_fpr)]
        scores = np.concatenate([rng.normal(size=200), normal])
        assert ((scores > threshold) == (p_values(scores, normal) <= target_fpr + 1e-9)).all()


@pytest.mark.parametrize(("target_fpr", "needed"), [(0.05, 19), (0.1, 9), (0.5, 1), (0.3, 3), (0.01, 99)])
def test_images_that_a_rate_needs(target_fpr, needed) -> None:
    assert needed_images(target_fpr) == needed
    assert allowed_rank(needed, target_fpr) == 1
    assert allowed_rank(needed - 1, target_fpr) == 0


@pytest.mark.parametrize(("count", "rank", "images"), [(45, 2, 60), (19, 1, 200), (200, 20, 30)])
def test_the_expected_interval_holds_95_percent_of_the_counts(count, rank, images) -> None:
    rng, sets = np.random.default_rng(1), 10_000
    thresholds = np.sort(rng.normal(size=(sets, count)), axis=1)[:, -rank]
    above = (rng.normal(size=(sets, images)) > thresholds[:, None]).sum(axis=1)
    expected = expected_count(count, rank, images)
    assert expected.mean == pytest.approx(images * rank / (count + 1))
    assert abs(above.mean() - expected.mean) < 4 * above.std() / np.sqrt(sets)
    assert ((above >= expected.low) & (above <= expected.high)).mean() > 0.95 - 4 * np.sqrt(0.95 * 0.05 / sets)
    assert (above < expected.low).mean() < 0.025 + 4 * np.sqrt(0.025 / sets)
    assert (above > expected.high).mean() < 0.025 + 4 * np.sqrt(0.025 / sets)
    rate = expected_rate(count, rank)
    assert rate.mean == pytest.approx(rank / (count + 1))
    assert rate.low < rate.mean < rate.high


def test_nothing_is_promised_below_the_smallest_score() -> None:
    assert expected_rate(5, 6) == (1, 0, 1)
    assert expected_count(5, 6, 20) == (20, 0, 20)


def test_selection_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.5 0.9 against 0.02 0.04 0.06 0.08 0.1
    assert select([0.5, 0.01, 0.9, 0.03, 0.02], 0.1).tolist() == [False, True, False, True, True]
    assert not select([0.5, 0.6], 0.1).any()
    assert select([0.05, 0.05], 0.05).all()  # equal to the limit, and a tie
    assert select([], 0.1).tolist() == []
    for wrong in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="target_fdr="):
            select([0.5], wrong)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("target_fdr", [0.1, 0.3])
def test_the_false_discovery_rate_is_kept(draw, target_fdr) -> None:
    """The mean share of normal images among the selected, 2,000 validation sets: within four standard errors."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(2000):
        scores = np.concatenate([draw(rng, 70), 2 + draw(rng, 30)])
        chosen = select(p_values(scores, draw(rng, 100)), target_fdr)
        shares.append(chosen[:70].sum() / max(chosen.sum(), 1))
    assert np.mean(shares) <= 0.7 * target_fdr + 4 * np.std(shares) / np.sqrt(len(shares))
    if draw is DRAWS["Gaussian"] and target_fdr == 0.3:
        assert np.mean(shares) > 0.1  # it does select


@pytest.mark.parametrize(("count", "novel"), [(19, 10), (99, 5)])
def test_the_least_rate_that_selects_anything(count, novel) -> None:
    values = np.where(np.arange(100) < novel, 1 / (count + 1), 1.0)
    least = least_fdr(count, novel / 100)
    if least < 1:
        assert select(values, least).sum() == novel
        assert not select(values, 0.99 * least).any()
