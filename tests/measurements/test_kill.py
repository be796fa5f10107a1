"""Killed trainings are resumed as if nothing had happened: three of the twenty runs of the script."""

import pytest

from measurements.reliability.kill import STAGES, TOLERANCE, Killer


@pytest.mark.slow
def test_a_killed_training_ends_where_the_uninterrupted_one_does(tmp_path):
    killer = Killer(tmp_path)
    for number in range(len(STAGES)):
        kill = killer.run(number)
        assert kill.weights <= TOLERANCE, kill
        assert kill.scores <= TOLERANCE, kill
