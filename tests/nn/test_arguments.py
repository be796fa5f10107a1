"""Checks of the model's arguments (pure functions)."""

import pytest

from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.models.defend.epochs import plan_epochs


@pytest.mark.parametrize(("size", "pair"), [(None, None), (64, (64, 64)), ((64, 96), (64, 96)), ([64, 96], (64, 96))])
def test_one_number_stands_for_both_sides(size, pair):
    assert as_pair(size) == pair


def test_values_in_range_and_absent_values_pass():
    check_ranges(epochs=(0, 0, None), ratio=(0.99, 0, 0.99), number=(None, 1, 3))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((-1, 0, None), r"epochs=-1 must be at least 0\."),
        ((1.5, 0, 1), r"epochs=1.5 must be at least 0 and at most 1\."),
        ((-0.1, 0, 1), r"epochs=-0.1 must be at least 0 and at most 1\."),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(limits, message):
    with pytest.raises(ValueError, match=message):
        check_ranges(fine=(1, 0, 2), epochs=limits)


@pytest.mark.parametrize(
    ("dense", "distill", "limit", "planned"),
    [
        (3, 10, 1000, 13),  # Lightning's own limit where the user gave none
        (0, 10, 1000, 10),
        (3, 10, 13, 13),
        (3, 10, 4, 4),  # fewer epochs of stage 2
        (3, 10, 12, 12),
        (0, 10, 1, 1),
        (0, 1, 1, 1),
    ],
)
def test_the_users_limit_is_honoured(dense, distill, limit, planned):
    assert plan_epochs(dense, distill, limit) == planned


@pytest.mark.parametrize(("dense", "distill", "limit"), [(3, 10, 3), (3, 10, 1), (3, 10, 14), (0, 5, 6), (3, 10, 0)])
def test_a_limit_that_does_not_fit_is_refused_with_what_would(dense, distill, limit):
    message = rf"trainer\.max_epochs={limit} .*dense_epochs={dense}.*from {dense + 1} to {dense + distill}"
    with pytest.raises(ValueError, match=message):
        plan_epochs(dense, distill, limit)


@pytest.mark.parametrize("limit", [None, -1])
def test_training_without_end_is_refused(limit):
    with pytest.raises(ValueError, match="max_epochs"):
        plan_epochs(3, 10, limit)
