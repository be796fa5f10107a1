"""Labels that rounding may change are counted: as many as move with the rounding, and those alone."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.decision import Calibration, Level
from anomalib_defend.decision.table import Row
from anomalib_defend.post_processing.description import description_path
from anomalib_defend.scoring import undecided
from anomalib_defend.scoring.journal import Entry
from anomalib_defend.scoring.tally import Tally
from anomalib_defend.scoring.undecided import COARSE, FLOAT32, Undecided

LEVEL = Level(2.0, 0.5, 1.5, tuple(np.linspace(1, 2, 20).tolist()))


@pytest.mark.parametrize("sensitivity", [0.5, 0.2, 0.999, 0.001])
@pytest.mark.parametrize(("coarse", "share"), [(False, FLOAT32), (True, COARSE)])
def test_a_score_that_rounding_moves_across_the_threshold_is_counted(coarse, share, sensitivity) -> None:
    calibration = Calibration(0.05, LEVEL, sensitivity=sensitivity)
    near = Undecided.around(calibration, coarse=coarse)
    raw = np.linspace(-6, 12, 200_001)
    labels = raw > calibration.label_threshold
    scaled = calibration.image.scaled(raw).astype(float)
    moved = [raw > calibration.label_threshold * (1 + change) for change in (-share, share)]
    moved += [scaled > 1 - sensitivity + change for change in (-0.9 * share, 0.9 * share)]
    flips = np.any([other != labels for other in moved], axis=0)
    counted = np.array([near.count(raw[index : index + 1]) for index in flips.nonzero()[0]])
    assert counted.all()
    far = (np.abs(scaled - (1 - sensitivity)) > 1.1 * share) & (np.abs(raw - calibration.label_threshold) > 0.05)
    assert near.count(raw[far]) == 0


@given(rounding=st.floats(0, 3), score=st.floats(-2, 5), moves=st.tuples(*2 * [st.floats(-1, 1)]))
def test_what_was_measured_is_counted_by_whichever_score(rounding, score, moves) -> None:
    calibration = Calibration(0.05, LEVEL)
    near = Undecided.around(calibration, coarse=True, rounding=rounding)
    scores = score + rounding / 2 * np.array(moves)
    labels = scores > calibration.label_threshold
    assert labels[0] == labels[1] or near.count(scores) == 2
    assert near.low <= Undecided.around(calibration, coarse=True).low
    exact = Undecided.around(calibration, coarse=False)
    assert exact == Undecided.around(calibration, coarse=False, rounding=rounding)


def test_a_tally_counts_labels_alone() -> None:
    tally = Tally(Calibration(0.05, LEVEL), coarse=True)
    for score, label in ((2.0, False), (2.001, True), (1.999, None), (1.0, False), (float("nan"), True)):
        tally.add(Entry(Row("a", label=label, raw_score=score)))
    tally.add(Entry(Row("a", error="broken")))
    tally.add_many(3, 0, 1, np.array([]), np.array([1.0, 2.0, 3.0]))
    assert tally.undecided == 3
    (said,) = [line for line in tally.told(1, {}) if "by rounding" in line]
    assert "Labels of 3 images" in said
    assert "--hint f32" in said
    assert not any("by rounding" in line for line in Tally(None).told(1, {}))


def test_the_last_lines_and_the_description_tell(dn2, images, rows, tmp_path, capsys, monkeypatch) -> None:
    threshold = rows(dn2.export, *images, hint="f32", out="first.csv")[0].threshold
    assert "by rounding" not in capsys.readouterr().out
    monkeypatch.setattr(undecided, "FLOAT32", 0.45)  # most of the scores
    found = rows(dn2.export, *images, hint="f32")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "by rounding" in line]
    low, high = (float(number) for number in line.partition("between ")[2].partition(",")[0].split(" and "))
    assert low < threshold < high
    count = sum(low <= row.raw_score <= high for row in found)
    assert f"Labels of {count} images" in line
    assert count
    assert "--hint" not in line
    assert json.loads(description_path(tmp_path / "out.csv").read_text())["images"]["undecided"] == count


@pytest.mark.parametrize(("hint", "coarse"), [("f32", False), ("bf16", True)])
def test_the_hint_says_the_arithmetic(dn2, images, rows, capsys, monkeypatch, hint, coarse) -> None:
    monkeypatch.setattr(undecided, "FLOAT32", 0.45)
    monkeypatch.setattr(undecided, "COARSE", 0.45)
    rows(dn2.export, *images, hint=hint)
    assert ("--hint f32" in capsys.readouterr().out) == coarse
