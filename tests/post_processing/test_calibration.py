"""The normal scores stay with the model: a threshold that moves later, p-values, and what an export needs."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from torchmetrics import Metric

from anomalib_defend.decision import p_value, p_values, raw_score
from anomalib_defend.decision.calibration import Calibration
from anomalib_defend.post_processing import NormalQuantilePostProcessor, require_threshold
from anomalib_defend.post_processing.thresholds import forget_threshold, lacks_threshold


def calibrated(*args, scores=None, maps=False, **kwargs):
    processor = NormalQuantilePostProcessor(*args, **kwargs)
    scores = torch.rand(50) if scores is None else scores
    processor.calibrate(scores, *((scores + 1, scores / 2) if maps else ()))
    return processor


def restored(saved, **kwargs):
    """As anomalib restores a checkpoint: options first, then tensors."""
    processor = NormalQuantilePostProcessor(**kwargs)
    processor.load_checkpoint_config(saved.checkpoint_config())
    for _ in range(2):  # as Lightning does where a module is found twice
        processor.load_state_dict(saved.state_dict())
    return processor


def old_checkpoint(processor):
    """As a version without calibrations saved it."""
    return {
        name: value
        for name, value in processor.state_dict().items()
        if not name.endswith(("_normal_scores", "_typical"))
    }


@pytest.mark.parametrize("target_fpr", [0.1, 0.5, 0.001])
def test_a_moved_threshold_is_that_of_a_model_trained_for_it(target_fpr, caplog) -> None:
    scores = torch.rand(50)
    moved, trained = calibrated(scores=scores, maps=True), calibrated(target_fpr, scores=scores, maps=True)
    with caplog.at_level(logging.INFO):
        told = moved.set_target_fpr(target_fpr)
    outputs = InferenceBatch(pred_score=torch.rand(99), anomaly_map=1 + torch.rand(99, 1, 4, 4))
    for one, other in zip(moved(outputs), trained(outputs), strict=True):
        assert torch.equal(one, other)
    assert told == trained.calibration
    assert told.image.threshold == moved.image_threshold.item()
    assert f"target_fpr={target_fpr:g}: the threshold is" in caplog.text
    assert ("too few for target_fpr=0.001" in caplog.text) == (target_fpr == 0.001)
    assert ((moved(outputs).pred_score > 0.5) == moved(outputs).pred_label).all()  # 0.5 stays the threshold


def test_the_threshold_moves_back_to_the_same_bits() -> None:
    processor = calibrated(0.05, maps=True)
    before = {name: value.clone() for name, value in processor.state_dict().items()}
    processor.set_target_fpr(0.4)
    assert processor.image_threshold < before["_image_threshold"]
    processor.set_target_fpr(0.05)
    assert all(
        torch.equal(value, before[name]) or value.isnan().all() for name, value in processor.state_dict().items()
    )


def test_a_checkpoint_holds_the_normal_scores() -> None:
    saved = calibrated(0.2, maps=True)
    processor = restored(saved)
    assert processor.calibration == saved.calibration
    assert processor.calibration.count == 50
    assert processor.set_target_fpr(0.4) == saved.set_target_fpr(0.4)


def test_a_rate_that_is_given_beside_a_checkpoint_moves_the_threshold(caplog) -> None:
    saved = calibrated(0.2)
    with caplog.at_level(logging.INFO):
        processor = restored(saved, target_fpr=0.5)
    assert processor.calibration == saved.calibration.moved(0.5)
    assert caplog.text.count("target_fpr=0.5 as given; the checkpoint's is 0.2.") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert restored(saved).calibration == saved.calibration
        assert restored(saved, target_fpr=0.2).calibration == saved.calibration
    assert not caplog.text
    assert restored(saved, target_fpr=0.05).target_fpr == 0.05  # the default's value, but given


@pytest.mark.parametrize(
    ("name", "value"), [("image_sensitivity", 0.7), ("enable_thresholding", False), ("enable_normalization", False)]
)
def test_another_option_that_is_given_beside_a_checkpoint_counts(name, value, caplog) -> None:
    saved = calibrated()
    with caplog.at_level(logging.INFO):
        processor = restored(saved, **{name: value})
    assert getattr(processor, name) == value
    assert f"{name}={value} as given; the checkpoint's is {getattr(saved, name)}." in caplog.text
    assert getattr(restored(calibrated(**{name: value})), name) == value  # and else the checkpoint's


def test_an_old_checkpoint_works_and_says_what_it_lacks(caplog) -> None:
    saved = calibrated(0.2)
    processor = NormalQuantilePostProcessor()
    processor.load_checkpoint_config(saved.checkpoint_config())
    processor.load_state_dict(old_checkpoint(saved))
    outputs = InferenceBatch(pred_score=torch.rand(20))
    assert torch.equal(processor(outputs).pred_score, saved(outputs).pred_score)
    assert processor.calibration is None
    with pytest.raises(ValueError, match=r"no normal validation scores .* --calibrate FOLDER"):
        processor.set_target_fpr(0.1)
    require_threshold(processor, "export")

    given = NormalQuantilePostProcessor(0.1)
    given.load_checkpoint_config(saved.checkpoint_config())
    given.load_state_dict(old_checkpoint(saved))
    for refuse in (lambda: given.on_test_start(None, None), lambda: require_threshold(given, "export")):
        with pytest.raises(ValueError, match=r"target_fpr=0.1 was given, the checkpoint's is 0.2\. The model holds no"):
            refuse()
    given.calibrate(torch.rand(30))  # as a resumed training does
    given.on_test_start(None, None)


def test_an_export_without_threshold_is_refused_with_the_ways_out() -> None:
    for processor in (NormalQuantilePostProcessor(), PostProcessor()):
        with pytest.raises(RuntimeError, match=r"Cannot export: no normal image .* --calibrate .* --labels false"):
            require_threshold(processor, "export")
    require_threshold(calibrated(), "export")
    require_threshold(None, "export")
    silent = NormalQuantilePostProcessor(enable_thresholding=False)
    require_threshold(silent, "export")
    done = silent(InferenceBatch(pred_score=torch.tensor([0.0, 1.0])))
    assert done.pred_label is None
    assert done.pred_score.tolist() == [0.5, 0.75]


@pytest.mark.parametrize("kind", [NormalQuantilePostProcessor, PostProcessor])
def test_a_forgotten_threshold_leaves_a_fresh_post_processor(kind) -> None:
    """An interrupted validation included; options stay."""

    def validated(processor, *, ends=True):
        batch = ImageBatch(
            image=torch.zeros(9, 3, 2, 2),
            pred_score=torch.rand(9),
            anomaly_map=torch.rand(9, 1, 2, 2),
            gt_label=torch.arange(9) % 2,
            gt_mask=torch.rand(9, 2, 2) > 0.5,
        )
        processor.on_validation_batch_end(None, None, batch)
        if ends:
            processor.on_validation_epoch_end(None, None)
        return processor

    processor = validated(kind(image_sensitivity=0.6))
    assert not lacks_threshold(processor)
    validated(processor, ends=False)
    forget_threshold(processor)
    assert lacks_threshold(processor)
    fresh = kind(image_sensitivity=0.6)
    assert processor.checkpoint_config() == fresh.checkpoint_config()
    assert processor.state_dict().keys() == fresh.state_dict().keys()
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(processor.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert all(not metric.update_called for metric in processor.modules() if isinstance(metric, Metric))
    forget_threshold(None)
    assert not lacks_threshold(None)


def test_p_values_and_raw_scores_from_what_a_model_returns() -> None:
    processor = calibrated(0.1)
    scores = torch.cat([torch.rand(200), processor._image_normal_scores])
    done = processor(InferenceBatch(pred_score=scores))
    calibration = processor.calibration
    np.testing.assert_allclose(raw_score(done.pred_score, calibration), scores, rtol=1e-5, atol=1e-6)
    expected = p_values(scores, processor._image_normal_scores)
    assert (p_value(done.pred_score, calibration) == expected).mean() > 0.99
    assert (p_value(done.pred_score, calibration) >= expected).all()  # what scaling makes equal is a tie
    unscaled = calibrated(0.1, enable_normalization=False)
    assert (p_value(scores, unscaled.calibration) == p_values(scores, unscaled._image_normal_scores)).all()


@pytest.mark.parametrize("sensitivity", [0.2, 0.5, 0.7])
def test_what_to_expect_follows_the_labels(sensitivity) -> None:
    """Sensitivity promises no rate: the expectation counts the normal scores above what it makes the threshold."""
    processor = calibrated(0.2, image_sensitivity=sensitivity, scores=torch.randn(400))
    novel = processor(InferenceBatch(pred_score=torch.randn(20_000))).pred_label.float().mean().item()
    rate = processor.calibration.expected_rate()
    assert rate.low <= novel <= rate.high
    assert (sensitivity == 0.5) == (rate.mean == pytest.approx(80 / 401))


def test_a_calibration_file_keeps_every_bit(tmp_path) -> None:
    calibration = calibrated(0.1, maps=True).calibration
    path = tmp_path / "model.calibration.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration
    for content in ("{}", "[]", "no JSON", '{"format": 99}', path.read_text().replace('"scale"', '"scales"')):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"model.calibration.json is no calibration"):
            Calibration.load(path)
    with pytest.raises(FileNotFoundError, match=r"anomalib-defend threshold MODEL --calibrate"):
        Calibration.load(tmp_path / "other.json")


def test_validation_images_that_choose_an_epoch_are_told(caplog) -> None:
    def told(monitor):
        caplog.clear()
        trainer = SimpleNamespace(callbacks=[SimpleNamespace(), SimpleNamespace(monitor=monitor)])
        NormalQuantilePostProcessor().on_fit_start(trainer, None)
        return "hold no longer exactly" in caplog.text

    assert told("val_score")
    assert not told(None)
    assert told("val_loss")
    assert told("image_AUROC")
    assert not told("train_loss")
    assert not told("dense_loss_epoch")


def test_an_interrupted_validation_leaves_nothing() -> None:
    processor = NormalQuantilePostProcessor()
    for scores in (torch.full((9,), 5.0), torch.rand(9)):  # the first one never ends
        processor.on_validation_epoch_start(None, None)
        processor.on_validation_batch_end(None, None, ImageBatch(image=torch.zeros(9, 3, 2, 2), pred_score=scores))
    processor.on_validation_epoch_end(None, None)
    assert processor.image_threshold < 1
