"""The measured false-positive rates are what order statistics promise."""

import pytest
import torch

from measurements.reliability.thresholds import DISTRIBUTIONS, TARGET, measure, theory


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_thousand_validation_images_hit_the_target_nearly_always(name):
    torch.manual_seed(0)
    rates = measure(DISTRIBUTIONS[name], validation=1000, repetitions=100)
    assert rates.mean == pytest.approx(TARGET, abs=0.003)
    assert rates.in_range >= 0.9  # 97 % are expected, with a standard deviation of 1.7 %


def test_few_validation_images_give_the_rate_of_their_order_statistic():
    torch.manual_seed(0)
    for validation, expected in ((10, 1 / 11), (45, 2 / 46)):
        assert theory(validation).mean == pytest.approx(expected)
        rates = measure(DISTRIBUTIONS["log-normal"], validation, repetitions=400)
        assert rates.mean == pytest.approx(expected, abs=0.015)


def test_the_expected_rate_is_the_target_at_most_from_19_images_on():
    assert theory(18).mean > TARGET
    assert all(theory(validation).mean <= TARGET + 1e-9 for validation in range(19, 500))
