"""What a test set cannot say is left out."""

import pytest
import torch
from anomalib.data import ImageBatch
from sklearn.metrics import f1_score

from anomalib_defend.post_processing import F1Score


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
