"""The program that times pictures, and what it finds."""

import re

from measurements import pictures


def test_pictures_cost_less_than_anomalibs(capsys):
    pictures.main(["--images", "5", "--size", "300", "200"])
    printed = capsys.readouterr().out
    ratios = [float(ratio) for ratio in re.findall(r"ours costs ([\d.]+) of it", printed)]
    assert len(ratios) == 2
    assert max(ratios) < 1  # about 0.25: a busy machine makes no difference to that
