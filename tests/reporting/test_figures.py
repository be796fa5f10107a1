"""The report's figures are scikit-learn's, and its threshold is the one that the labels follow."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anomalib_defend.decision.ranking import counted, false_positive_rate
from anomalib_defend.decision.table import Row
from anomalib_defend.reporting.figures import curves, histogram, threshold_of, validation_scores

from .conftest import calibration, make_rows


@pytest.mark.parametrize("digits", [9, 1])
@pytest.mark.parametrize("novel_share", [0.05, 0.5, 0.9])
def test_the_figures_are_scikit_learns(digits, novel_share) -> None:
    rng = np.random.default_rng(7)
    labels = rng.random(300) < novel_share
    scores = (rng.normal(size=300) + labels).round(digits)  # with ties, and nearly without
    found = curves([Row("", score, true_label=bool(label)) for score, label in zip(scores, labels, strict=True)], 100)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    wanted = {
        "AUROC": roc_auc_score(labels, scores),
        "AUPR": average_precision_score(labels, scores),
        "FPR at 95 % TPR": false[np.argmax(true >= 0.95 - 1e-12)],
    }
    assert found.measures.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found.measures[name].value == pytest.approx(value, abs=1e-6)
    assert found.roc == pytest.approx(np.stack([false, true], axis=1)[: len(found.roc)])


def test_the_rate_is_reached_where_it_is_a_whole_number_of_images() -> None:
    labels = np.array([1] * 19 + [0] * 10 + [1])  # 0.95 * 20 is a little more than 19
    assert false_positive_rate(*counted(labels, np.arange(30.0)[::-1])) == [0]


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    rng, truth, held = np.random.default_rng(0), 0.76025, 0  # of two normal distributions, one apart
    for _ in range(100):
        scores = np.concatenate([rng.normal(size=60), rng.normal(size=60) + 1])
        rows = [Row("", score, true_label=index >= 60) for index, score in enumerate(scores)]
        estimate = curves(rows, 200).measures["AUROC"]
        held += estimate.low <= truth <= estimate.high
    assert 88 <= held <= 99  # three standard errors around 95


def test_the_raw_scores_rank_where_they_are_known() -> None:
    rows = [Row("", 0.9, raw_score=1.0, true_label=False), Row("", 0.9, raw_score=2.0, true_label=True)]
    assert curves(rows, 100).measures["AUROC"].value == 1
    rows[0].raw_score = None
    assert curves(rows, 100).measures["AUROC"].value == 0.5


def test_there_are_no_curves_without_both_labels() -> None:
    assert curves(make_rows(10, labelled=False)) is None
    assert curves([Row("", 0.1, true_label=False), Row("", 0.2, true_label=False)]) is None


def rows_of(*scores, labels, **known):
    return [Row("", score, label, **known) for score, label in zip(scores, labels, strict=True)]


@pytest.mark.parametrize(
    ("rows", "threshold"),
    [
        (rows_of(0.2, 0.5, 0.7, labels=[False, False, True], raw_score=1.0, threshold=9.0), 0.5),
        (rows_of(2, 3, 4, labels=[False, False, True], threshold=3.5), 3.5),  # raw scores
        ([Row("", score, score > 3.5, score, threshold=3.5) for score in (2.0, 3.0, 9.0)], 3.5),  # the same, kept twice
        (rows_of(0.1, 0.2, 0.4, labels=[False, True, True], raw_score=1.0), pytest.approx(0.15)),  # a sensitivity
        (rows_of(0.1, 0.2, labels=[None, None]), None),
        (rows_of(0.6, 0.7, labels=[False, False], raw_score=1.0), 0.7),
    ],
)
def test_the_threshold_is_the_one_that_the_labels_follow(rows, threshold) -> None:
    assert threshold_of(rows) == threshold
    assert threshold is None or all(row.label is (row.score > threshold_of(rows)) for row in rows)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sensitivity", [0.5, 0.7])
def test_the_threshold_is_the_calibrations(normalized, sensitivity) -> None:
    """Of few images the middle lies elsewhere: the page would expect other false alarms than the verdict."""
    known = replace(calibration(), normalized=normalized, sensitivity=sensitivity)
    raw = np.linspace(0, 1.2, 7)
    scores = known.image.scaled(raw) if normalized else raw
    rows = [
        Row("", float(score), bool(value > known.label_threshold), float(value))
        for score, value in zip(scores, raw, strict=True)
    ]
    threshold = threshold_of(rows, known)
    assert threshold == (1 - sensitivity if normalized else known.label_threshold)
    assert 1 + sum(score > threshold for score in validation_scores(known)) == known.rank


def test_labels_of_two_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one image of score 0\.2 is called novel"):
        threshold_of(rows_of(0.2, 0.7, labels=[True, False]))


def test_a_histogram_holds_every_image() -> None:
    rows = make_rows(50)
    found = histogram(rows, 0.99)
    assert found.low < min(row.score for row in rows)
    assert found.high > 0.99
    assert [sum(shares) for shares in found.shares.values()] == pytest.approx([1, 1])
    assert histogram([Row("", 0.5)], 0.5).high > 0.5  # one image at the threshold


def test_validation_scores_are_in_the_tables_unit() -> None:
    found = validation_scores(calibration())
    assert sum(score > 0.5 for score in found) == 4
    assert found == sorted(found)
