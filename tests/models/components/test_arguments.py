"""Checks of the model's arguments (pure functions)."""

import pytest

from anomalib_defend.models.components.arguments import as_pair, check_choices, check_ranges


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


def test_a_value_that_is_no_choice_is_named_with_the_choices():
    check_choices(score=("distance", ("distance", "other")))
    with pytest.raises(ValueError, match="score='max' must be one of 'distance', 'other'"):
        check_choices(score=("max", ("distance", "other")))
