"""The tables of realised rates, from scores whose rates are known; tolerances are four standard errors."""

import numpy as np
import pytest

from measurements import thresholds
from measurements.arithmetics import DRAWS, realised, table

ENGINES = np.random.default_rng(0).normal(size=1000).astype(np.float32)
MOVED = ENGINES + np.float32(0.5)  # as another arithmetic moves scores
PROMISED = 10 / 101  # of 100 validation images, with target_fpr=0.1


def mean_of(cell: str) -> float:
    return float(cell.partition(",")[0])


def test_scores_that_are_moved_need_a_threshold_of_their_own() -> None:
    same, moved = realised(ENGINES, ENGINES, 100, 0.1), realised(ENGINES, MOVED, 100, 0.1)
    assert (same.engines == same.anew).all()
    error = same.anew.std() / np.sqrt(DRAWS)
    assert same.anew.mean() == pytest.approx(PROMISED, abs=4 * error)
    assert moved.anew.mean() == pytest.approx(PROMISED, abs=4 * error)
    assert moved.engines.mean() > 0.18  # 1 - Phi(1.28 - 0.5) = 0.22


def test_the_table_of_arithmetics() -> None:
    header, _, *rows = table({"engine": ENGINES, "moved": MOVED}, (100, 300), (0.05, 0.1))
    rows = [row.strip("| ").split(" | ") for row in rows]
    assert [row[0] for row in rows] == 4 * ["engine"] + 4 * ["moved"]
    assert [row[2:4] for row in rows[:4]] == [["100", "0.05"], ["100", "0.1"], ["300", "0.05"], ["300", "0.1"]]
    assert all(len(row) == header.count("|") - 1 for row in rows)
    for row in rows[:4]:
        assert (row[1], row[4]) == ("0", row[5])
    for row in rows[4:]:
        assert float(row[1]) == pytest.approx(0.5 / ENGINES.std(), abs=0.01)
        assert mean_of(row[4]) > 1.5 * float(row[3])
        assert mean_of(row[5]) < 1.1 * float(row[3])


def test_the_tables_of_photographs() -> None:
    pool = thresholds.Pool(ENGINES, ENGINES[:300] + 10)
    _, _, promised, kept, inside = thresholds.false_alarms(pool, 100, 0.1).split(" | ")
    assert mean_of(promised) == pytest.approx(PROMISED, abs=5e-4)
    assert mean_of(kept) == pytest.approx(PROMISED, abs=0.01)
    assert int(inside.rstrip("%")) >= 85
    excess, error = map(float, thresholds.validity(pool, 100).split(" | ")[1].split(",")[0].split(" ± "))
    assert excess <= 4 * error < 0.02
    share, found = thresholds.discoveries(pool, 100, 0.2).split(" | ")[2:]
    assert float(share.split(" ± ")[0]) == pytest.approx(0.7 * 0.2, abs=0.02)
    assert found == "1.00"  # they lie far away
