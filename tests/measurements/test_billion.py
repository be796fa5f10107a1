"""The plan of a billion images is arithmetics."""

import pytest

from measurements.billion import Measured, plan


def test_a_day_of_cores_by_hand() -> None:
    row = plan(86_400 * 1000, 100, Measured(20, 0.5, 1e5, 50, 1e9))
    assert row["images/s"] == 1000
    assert row["hours"] == pytest.approx(24)
    assert row["network, Gbit/s"] == pytest.approx(0.8)
    assert row["memory, GB"] == pytest.approx(100)
