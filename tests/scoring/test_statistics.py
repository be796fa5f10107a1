"""The validity line and the selection, against scipy and against what lists of all p-values give."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, binomtest

from anomalib_defend.decision import Calibration, Level, p_values, select
from anomalib_defend.decision.conformal import count_above, expected_count
from anomalib_defend.decision.table import Row
from anomalib_defend.scoring.journal import Entry
from anomalib_defend.scoring.tally import Tally
from anomalib_defend.scoring.validity import CHANCE, counted, sentence

MODEL = Path("model.xml")


def calibration_of(count: int) -> Calibration:
    return Calibration(0.05, Level(1.0, 0.5, 0.5, tuple(np.linspace(0, 1, count).tolist())))


def tallied(values, count: int, errors: int = 0) -> Tally:
    tally = Tally(calibration_of(count))
    for value in values:
        tally.add(Entry(Row("a", p_value=float(f"{value:.9g}"))))  # as a table has it
    for _ in range(errors):
        tally.add(Entry(Row("a", error="broken")))
    return tally


@given(
    ranks=st.lists(st.integers(1, 20) | st.integers(1, 3), max_size=40),
    errors=st.integers(0, 5),
    fdr=st.floats(0.01, 0.99),
)
def test_counts_select_what_lists_do(ranks, errors, fdr) -> None:
    values = np.array(ranks, dtype=float) / 20
    tally = tallied(values, 19, errors)
    rank = tally.selects(fdr)
    expected = select([*values, *[1.0] * errors], fdr)
    assert [tally.is_selected(value, rank) for value in values] == expected[: len(values)].tolist()
    assert not tally.is_selected(None, rank)
    for level in (0.05, 0.5, fdr):
        assert tally.at_most(level) == int((values <= level + 1e-12).sum())


def test_the_test_is_scipys() -> None:
    count = counted(0.05, 12, 100, 199)
    assert count.chance == pytest.approx(betabinom(100, 10, 190).sf(11))
    assert count.expected == expected_count(199, 10, 100)
    # with very many validation images the rate is known, and it is the binomial test
    many = counted(0.05, 70, 1000, 1_999_999)
    assert many.chance == pytest.approx(binomtest(70, 1000, 0.05, alternative="greater").pvalue, rel=5e-3)
    assert counted(0.05, 0, 100, 18) is None  # no p-value is so small
    assert counted(0.05, 0, 0, 100) is None
    assert count_above(10, 11, 5, 5) == 1


def test_very_many_images_are_counted_at_once() -> None:
    exact = betabinom(100_000, 50, 950)
    for images, rank, count in ((100_001, 50, 999), (100_001, 10_000, 199_999)):
        found = expected_count(count, rank, images)
        reference = betabinom(100_000, rank, count + 1 - rank)
        np.testing.assert_allclose(found, [reference.mean(), *reference.ppf([0.025, 0.975])], rtol=3e-3)
    assert count_above(999, 50, 100_001, 6500) == pytest.approx(exact.sf(6499), rel=0.05)
    assert expected_count(999, 50, 10**9).mean == pytest.approx(5e7)


def test_normal_images_alarm_rarely_and_others_do() -> None:
    rng = np.random.default_rng(0)
    alarms = shifted = 0
    for _ in range(150):
        normal, new = rng.normal(size=99), rng.normal(size=500)
        for shift in (0.0, 1.0):
            tally = tallied(p_values(new + shift, normal), 99)
            counts = [counted(level, tally.at_most(level), 500, 99) for level in (0.05, 0.5)]
            alarm = any(count.chance < CHANCE for count in counts)
            assert alarm == ("far more than of normal images" in sentence(counts, MODEL))
            alarms, shifted = alarms + (alarm and not shift), shifted + (alarm and bool(shift))
    assert alarms <= 3  # 150 times two tests of one in a thousand: 0.3 expected; 4 or more have a chance of 3e-4
    assert shifted > 140


def test_the_sentence_names_the_way_out() -> None:
    said = sentence([counted(0.05, 40, 100, 199)], MODEL)
    assert "40 of 100 p-values are at most 0.05 (of normal images 5, 95 % interval 1 to 11)" in said
    assert "anomalib-defend threshold model.xml --calibrate FOLDER" in said
    assert "another camera" in said
    assert sentence([counted(0.05, 6, 100, 199)], MODEL).endswith("nothing speaks against it.")
    latin = Path(os.fsdecode(b"m\xf6del.ckpt"))
    assert r"threshold m\xf6del.ckpt --calibrate" in sentence([counted(0.05, 40, 100, 199)], latin)
