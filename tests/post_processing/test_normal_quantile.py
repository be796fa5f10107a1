"""Thresholds from normal images alone, scaling that keeps the order, and the AUROC of the raw scores."""

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from anomalib_defend.post_processing import AUROC, NormalQuantilePostProcessor

DISTRIBUTIONS = {
    "normal": lambda n: 0.7 + 0.05 * torch.randn(n),
    "uniform": lambda n: 0.3 + 0.9 * torch.rand(n),
    "heavy tail": lambda n: (3 * torch.randn(n)).exp(),
}


def batch_of(scores, labels=None, maps=None):
    scores = torch.as_tensor(scores)
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 4, 4),
        pred_score=scores.clone(),
        anomaly_map=maps,
        gt_label=None if labels is None else torch.as_tensor(labels),
    )


def fitted(*batches, **kwargs):
    processor = NormalQuantilePostProcessor(**kwargs)
    for batch in batches:
        processor.on_validation_batch_end(None, None, batch)
    processor.on_validation_epoch_end(None, None)
    return processor


def run_test(processor, scores, labels=None, batch_size=16, metric=None):
    """Run test batches through the post-processor and a metric; scores and labels as the user gets them."""
    batches = []
    for start in range(0, len(scores), batch_size):
        part = slice(start, start + batch_size)
        batch = batch_of(scores[part], None if labels is None else labels[part])
        processor.on_test_batch_end(None, None, batch)
        if metric is not None:
            metric.update(batch)
        batches.append(batch)
    labels = None if batches[0].pred_label is None else torch.cat([batch.pred_label for batch in batches])
    return torch.cat([batch.pred_score for batch in batches]), labels


# --------------------------------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_held_out_normal_images_are_called_novel_as_rarely_as_asked_for(distribution):
    # a quantile of 1,000 has a standard deviation of 0.7 points itself, and so has the rate among 1,000
    processor = fitted(batch_of(distribution(4000)), target_fpr=0.05)
    _, novel = run_test(processor, distribution(1000))
    assert 0.03 <= novel.float().mean().item() <= 0.07


@pytest.mark.parametrize(("count", "target_fpr"), [(9, 0.1), (19, 0.25), (99, 0.05), (30, 0.5)])
def test_the_expected_rate_among_exchangeable_images_is_never_above_the_target(count, target_fpr):
    rates = []
    for _ in range(400):
        scores = torch.rand(count + 1)
        processor = fitted(batch_of(scores[:count]), target_fpr=target_fpr)
        rates.append(processor(InferenceBatch(pred_score=scores[count:])).pred_label.float())
    assert torch.cat(rates).mean().item() <= target_fpr + 0.05


@pytest.mark.parametrize(
    ("count", "target_fpr", "above"),
    [
        (10, 0.05, 0),
        (19, 0.05, 0),
        (39, 0.05, 1),
        (45, 0.05, 1),
        (99, 0.05, 4),
        (9, 0.7, 6),
        (99, 0.29, 28),
        (1, 0.9, 0),
    ],
)
def test_the_threshold_is_an_order_statistic(count, target_fpr, above):
    # of count + 1 exchangeable images, a share (above + 1) / (count + 1) exceeds it, which is target_fpr at most
    scores = torch.randperm(count).float()
    assert (scores > fitted(batch_of(scores), target_fpr=target_fpr).image_threshold).sum() == above


@pytest.mark.parametrize(("count", "told"), [(0, False), (1, True), (18, True), (19, False), (45, False)])
def test_too_few_validation_images_for_the_target_are_told(count, told, caplog):
    fitted(batch_of(torch.rand(count)), target_fpr=0.05).on_fit_end(None, None)
    assert ("too few for target_fpr=0.05" in caplog.text) == told
    assert ("at least 19" in caplog.text) == told


def test_a_lower_rate_needs_a_higher_threshold():
    scores = torch.rand(200)
    thresholds = [fitted(batch_of(scores), target_fpr=rate).image_threshold.item() for rate in (0.5, 0.2, 0.05, 0.01)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == pytest.approx(scores.median().item(), abs=0.02)
    assert len(set(thresholds)) == 4


def test_novel_validation_images_are_ignored():
    normal = torch.rand(50)
    labels = torch.cat([torch.zeros(50), torch.ones(30)]).long()
    mixed = fitted(batch_of(torch.cat([normal, 5 + torch.rand(30)]), labels, torch.rand(80, 1, 4, 4)))
    alone = fitted(batch_of(normal, labels[:50]))
    assert mixed.image_threshold == alone.image_threshold
    assert fitted(batch_of(normal)).image_threshold == alone.image_threshold  # unlabelled ones count as normal


def test_the_batches_of_the_validation_do_not_matter():
    scores, maps = torch.rand(50), torch.rand(50, 1, 4, 4)
    whole = fitted(batch_of(scores, maps=maps))
    parts = [slice(0, 1), slice(1, 20), slice(20, 50)]
    split = fitted(*(batch_of(scores[part], maps=maps[part]) for part in parts))
    statistics = split.state_dict()
    assert not whole.image_threshold.isnan()
    assert all(value.allclose(statistics[key], equal_nan=True) for key, value in whole.state_dict().items())


def test_every_validation_counts_for_itself():
    processor = fitted(batch_of(torch.rand(50)))
    later = torch.rand(50) + 3
    processor.on_validation_batch_end(None, None, batch_of(later))
    processor.on_validation_epoch_end(None, None)
    assert processor.image_threshold == fitted(batch_of(later)).image_threshold


def test_without_normal_validation_images_nothing_fails():
    processor = fitted(batch_of(torch.rand(8), torch.ones(8).long(), torch.rand(8, 1, 4, 4)))
    assert processor.image_threshold.isnan()
    scores = torch.rand(20)
    scaled, labels = run_test(processor, scores)
    assert torch.equal(scaled.argsort(), scores.argsort())
    assert labels is None


@pytest.mark.parametrize("sensitivity", [0.5, 0.7])
def test_without_threshold_nothing_is_called_normal(sensitivity):
    outputs = InferenceBatch(pred_score=torch.rand(5), anomaly_map=torch.rand(5, 1, 4, 4))
    done = NormalQuantilePostProcessor(image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)(outputs)
    assert done.pred_label is None
    assert done.pred_mask is None
    assert done.pred_score.shape == (5,)


def test_without_validation_a_warning_tells_why_there_is_no_label(caplog):
    NormalQuantilePostProcessor().on_test_start(None, None)
    assert "no threshold" in caplog.text
    caplog.clear()
    fitted(batch_of(torch.rand(20))).on_predict_start(None, None)
    assert not caplog.text


# ----------------------------------------------------------------------------------------------------------- scaling


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=30),
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=30),
)
def test_scaling_keeps_the_order_and_stays_within_zero_and_one(normal, scores):
    processor = fitted(batch_of(torch.tensor(normal)))
    scaled = processor(InferenceBatch(pred_score=torch.tensor(sorted(scores)))).pred_score
    assert (scaled >= 0).all()
    assert (scaled <= 1).all()
    # scores that differ by less than the rounding of the scaled ones may change places by one unit in the last place
    assert (scaled.diff() >= -torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_scaling_is_strictly_monotone_in_the_open_interval(factor):
    processor = fitted(batch_of(factor * DISTRIBUTIONS["normal"](200)))
    scores = factor * torch.linspace(0, 2, 500)
    scaled = processor(InferenceBatch(pred_score=scores)).pred_score
    assert (scaled.diff() > 0).all()
    assert scaled.min() > 0
    assert scaled.max() < 1


def test_the_threshold_is_scaled_to_one_half_and_the_typical_normal_image_to_one_quarter():
    normal = DISTRIBUTIONS["uniform"](101)
    processor = fitted(batch_of(normal))
    scores = torch.stack([processor.image_threshold, normal.median()])
    assert processor(InferenceBatch(pred_score=scores)).pred_score.tolist() == pytest.approx([0.5, 0.25], abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.7, 1e4])
def test_normal_images_that_all_score_alike(value):
    maps = torch.full((20, 1, 4, 4), value)
    processor = fitted(batch_of(torch.full((20,), value), maps=maps))
    scores = torch.tensor([value / 2, value, 1.01 * value + 1e-5, 2 * value + 10, 1e5])
    done = processor(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert done.pred_score.isfinite().all()
    assert (done.pred_score.diff() >= 0).all()
    assert done.pred_score[1].item() == 0.5
    assert (done.pred_score[2:] > 0.5).all()
    assert done.pred_label.tolist() == [False, False, True, True, True]
    assert done.anomaly_map.isfinite().all()
    assert not done.pred_mask.any()


def test_maps_are_scaled_alike_in_every_image_and_few_normal_ones_get_a_mask():
    maps = torch.rand(400, 1, 4, 4)
    processor = fitted(batch_of(torch.rand(400), maps=maps), target_fpr=0.05)
    done = processor(InferenceBatch(pred_score=torch.rand(400), anomaly_map=maps))
    assert done.pred_mask.flatten(1).any(dim=1).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert torch.equal(done.pred_mask, maps > processor.pixel_threshold)
    alone = processor(InferenceBatch(pred_score=torch.rand(1), anomaly_map=maps[7:8]))
    assert torch.equal(alone.anomaly_map, done.anomaly_map[7:8])
    assert torch.equal(done.anomaly_map.flatten().argsort(stable=True), maps.flatten().argsort(stable=True))


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("normalization", [True, False])
def test_labels_compare_the_raw_score_with_the_threshold(normalization):
    normal = DISTRIBUTIONS["normal"](200)
    processor = fitted(batch_of(normal), enable_normalization=normalization)
    scores = torch.cat([DISTRIBUTIONS["normal"](500), processor.image_threshold[None], normal])
    scaled, labels = run_test(processor, scores)
    assert torch.equal(labels, scores > processor.image_threshold)
    assert 0 < labels.sum() < len(labels)
    if normalization:
        assert torch.equal(scaled > 0.5, labels)
    else:
        assert torch.equal(scaled, scores)


def test_sensitivity_moves_the_threshold_of_the_scaled_score():
    normal, scores = torch.rand(200), torch.linspace(0, 2, 300)
    counts = []
    for sensitivity in (0.2, 0.5, 0.8):
        _, labels = run_test(fitted(batch_of(normal), image_sensitivity=sensitivity), scores)
        scaled, _ = run_test(fitted(batch_of(normal)), scores)
        assert torch.equal(labels, scaled > 1 - sensitivity)
        counts.append(labels.sum().item())
    assert counts[0] < counts[1] < counts[2]


def test_thresholding_can_be_switched_off():
    batch = batch_of(torch.rand(5))
    fitted(batch_of(torch.rand(50)), enable_thresholding=False).post_process_batch(batch)
    assert batch.pred_label is None


def test_the_exported_model_gives_the_engines_numbers():
    processor = fitted(batch_of(torch.rand(50), maps=torch.rand(50, 1, 4, 4)))
    scores, maps = torch.rand(9), torch.rand(9, 1, 4, 4)
    batch = batch_of(scores, maps=maps)
    processor.post_process_batch(batch)
    done = processor(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert torch.equal(batch.pred_score, done.pred_score)
    assert torch.equal(batch.pred_label, done.pred_label)
    assert torch.equal(batch.anomaly_map.reshape(-1), done.anomaly_map.reshape(-1))
    assert torch.equal(batch.raw_score, scores)


def test_maps_alone_are_enough_and_nothing_is_an_error():
    processor = fitted(batch_of(torch.rand(50), maps=torch.rand(50, 1, 4, 4)))
    maps = torch.rand(3, 1, 4, 4)
    by_map = processor(InferenceBatch(anomaly_map=maps)).pred_score
    by_score = processor(InferenceBatch(pred_score=maps.amax((1, 2, 3)))).pred_score
    assert torch.equal(by_map.flatten(), by_score)
    with pytest.raises(ValueError, match="At least one"):
        processor(InferenceBatch())


# ------------------------------------------------------------------------------------------------------------- AUROC


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 400])
@pytest.mark.parametrize(
    ("low", "high"), [(0.3, 1.2), (0.0, 1.0), (0.0, 1e4), (9_990.0, 1e4), (-5.0, 5.0)], ids=lambda value: f"{value:g}"
)
def test_auroc_equals_scikit_learns_on_the_raw_scores(low, high, batch_size, normalization):
    labels = (torch.rand(400) < 0.4).long()
    scores = low + (high - low) * (0.8 * torch.rand(400) + 0.2 * labels)
    scores[::50] = scores[1::50]  # some ties
    processor = fitted(batch_of(scores[labels == 0][:40]), enable_normalization=normalization)
    metric = AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    run_test(processor, scores, labels, batch_size, metric)
    assert metric.name == "image_AUROC"
    assert metric.compute().item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


def test_auroc_tells_scores_apart_that_scaling_cannot():
    # all normal images alike: far above the threshold the scaled scores are 1 in float32
    labels = torch.tensor([0, 1] * 20)
    scores = 1e4 + torch.arange(40.0)
    processor = fitted(batch_of(torch.full((20,), 1e-6)))
    metric = AUROC(fields=["pred_score", "gt_label"])
    scaled, _ = run_test(processor, scores, labels, 4, metric)
    assert len(scaled.unique()) < 40
    assert metric.compute().item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)


def test_auroc_of_other_fields_and_without_the_post_processor():
    labels, scores = torch.tensor([0, 1, 0, 1]), torch.tensor([30.0, 20.0, 10.0, 40.0])
    metric = AUROC(fields=["pred_score", "gt_label"])
    metric.update(batch_of(scores, labels))
    assert metric.compute().item() == pytest.approx(0.75)
    maps = torch.rand(2, 1, 4, 4) * 100
    masks = maps[:, 0] > 50
    pixels = AUROC(fields=["anomaly_map", "gt_mask"])
    batch = batch_of(scores[:2], maps=maps)
    batch.gt_mask = masks
    NormalQuantilePostProcessor().post_process_batch(batch)
    pixels.update(batch)
    assert pixels.compute().item() == pytest.approx(1)


def test_auroc_of_unlabelled_images_is_refused_or_skipped_as_by_anomalib():
    batch = batch_of(torch.rand(4))
    NormalQuantilePostProcessor().post_process_batch(batch)
    lenient = AUROC(fields=["pred_score", "gt_label"], strict=False)
    lenient.update(batch)
    assert lenient.compute() is None
    with pytest.raises(ValueError, match="gt_label"):
        AUROC(fields=["pred_score", "gt_label"]).update(batch)


# ------------------------------------------------------------------------------------------------------- persistence


def test_a_checkpoint_brings_options_and_statistics_back():
    processor = fitted(
        batch_of(torch.rand(50), maps=torch.rand(50, 1, 4, 4)), target_fpr=0.2, image_sensitivity=0.6,
        enable_normalization=False,
    )  # fmt: skip
    restored = NormalQuantilePostProcessor()
    restored.load_checkpoint_config(processor.checkpoint_config())
    restored.load_state_dict(processor.state_dict())
    assert restored.target_fpr == 0.2
    assert restored.checkpoint_config() == processor.checkpoint_config()
    scores, maps = torch.rand(20), torch.rand(20, 1, 4, 4)
    outputs = [p(InferenceBatch(pred_score=scores, anomaly_map=maps)) for p in (processor, restored)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    restored.enable_normalization = processor.enable_normalization = True
    outputs = [p(InferenceBatch(pred_score=scores, anomaly_map=maps)) for p in (processor, restored)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("target_fpr", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(target_fpr):
    with pytest.raises(ValueError, match="target_fpr="):
        NormalQuantilePostProcessor(target_fpr)


def test_auroc_of_one_label_is_left_out() -> None:
    metric = AUROC(fields=["pred_score", "gt_label"])
    metric.update(ImageBatch(image=torch.rand(3, 3, 4, 4), pred_score=torch.rand(3), gt_label=torch.zeros(3).long()))
    assert metric.compute() is None


@pytest.mark.parametrize("sensitivity", [0.5, 0.7])
def test_a_score_that_is_no_number_is_novel(sensitivity: float) -> None:
    processor = NormalQuantilePostProcessor(image_sensitivity=sensitivity)
    processor._set_statistics("image", torch.tensor(1.0), torch.tensor(0.5))
    labels = processor(InferenceBatch(pred_score=torch.tensor([0.1, float("nan"), 9.0]))).pred_label
    assert labels.tolist() == [False, True, True]
