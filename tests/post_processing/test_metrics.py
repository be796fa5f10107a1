"""What a test set cannot say is left out."""

import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from anomalib_defend.post_processing import AUROC, F1Score
from rounding import rounding


def f1_of(predicted, labels):
    metric = F1Score(fields=["pred_label", "gt_label"], prefix="image_", strict=False)
    count = len(labels)
    predicted = None if predicted is None else torch.tensor(predicted)
    metric.update(ImageBatch(image=torch.zeros(count, 3, 4, 4), pred_label=predicted, gt_label=torch.tensor(labels)))
    assert metric.name == "image_F1Score"
    return metric.compute()


def test_f1_of_normal_images_alone_is_left_out() -> None:
    assert f1_of([True, False, False], [0, 0, 0]) is None
    assert f1_of([False, False], [0, 0]) is None


def test_f1_without_labels_is_left_out() -> None:
    assert f1_of(None, [0, 1]) is None


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
def test_f1_equals_scikit_learns(labels) -> None:
    predicted = [True, True, False, False]
    assert f1_of(predicted, labels).item() == pytest.approx(f1_score(labels, predicted))


@given(
    images=st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans(), st.booleans()), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
)
def test_a_metric_is_scikit_learns_or_left_out(images, batch_size) -> None:
    auroc, f1 = AUROC(fields=["pred_score", "gt_label"]), F1Score(fields=["pred_label", "gt_label"])
    for start in range(0, len(images), batch_size):
        scores, predicted, labels = map(torch.tensor, zip(*images[start : start + batch_size], strict=True))
        batch = ImageBatch(
            image=torch.zeros(len(scores), 3, 4, 4), pred_score=scores, pred_label=predicted, gt_label=labels
        )
        auroc.update(batch)
        f1.update(batch)
    scores, predicted, labels = zip(*images, strict=True)
    area = roc_auc_score(labels, scores) if len(set(labels)) == 2 else None
    for found, value in ((auroc.compute(), area), (f1.compute(), f1_score(labels, predicted) if any(labels) else None)):
        assert found is None if value is None else found.item() == pytest.approx(value, abs=rounding(2 * len(images)))
