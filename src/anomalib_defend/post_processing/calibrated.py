"""What a model's scores mean, kept with its weights: threshold, scale, and the normal validation scores."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anomalib_defend.decision.calibration import Calibration, Level, threshold_and_scale
from anomalib_defend.decision.conformal import allowed_rank, check_share, needed_images, p_values

logger = logging.getLogger(__name__)

DEFAULT_TARGET_FPR = 0.05
LEVELS = ("image", "pixel")
NO_CALIBRATION = (
    "The model holds no normal validation scores (it was saved by an older version, or never validated), so that it "
    "has no p-values and its threshold cannot be moved: train anew, or `anomalib-defend threshold MODEL --calibrate "
    "FOLDER` with a folder of normal images that trained nothing."
)


class CalibratedPostProcessor(PostProcessor):
    """Labels and scales scores, by a threshold that its normal scores have set; see `NormalQuantilePostProcessor`."""

    def __init__(self, target_fpr: float | None, **options: Any) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        super().__init__(**given)
        self.target_fpr = DEFAULT_TARGET_FPR if target_fpr is None else target_fpr
        check_share(target_fpr=self.target_fpr)
        self._given = given if target_fpr is None else {**given, "target_fpr": target_fpr}
        self._unmoved: float | None = None  # the target_fpr of a checkpoint, where another one was given
        for level in LEVELS:
            self.register_buffer(f"_{level}_scale", torch.tensor(float("nan")))
            self.register_buffer(f"_{level}_typical", torch.tensor(float("nan")))
            self.register_buffer(f"_{level}_normal_scores", torch.empty(0))

    # ------------------------------------------------------------------------------------------------------ threshold

    def calibrate(self, scores: Tensor, largest: Tensor | None = None, means: Tensor | None = None) -> None:
        """Set threshold and scale from normal images that trained nothing; none at all change nothing.

        Args:
            scores: Their raw scores [n].
            largest: The largest value of each map [n], where there are maps.
            means: The mean value of each map [n].
        """
        for level, values, typical in (("image", scores, scores), ("pixel", largest, means)):
            if values is not None and typical is not None and len(values):
                self._set_level(level, values.detach().float().sort().values, typical.median().item())

    def _set_level(self, level: str, scores: Tensor, typical: float) -> None:
        setattr(self, f"_{level}_normal_scores", scores.to(self._buffer(level, "threshold").device))
        self._buffer(level, "typical").fill_(typical)
        self._move(level)
        self._unmoved = None

    def forget(self) -> None:
        """Be as before the first validation: what was known of other weights says nothing of these."""
        for level in LEVELS:
            for name in ("threshold", "scale", "typical"):
                self._buffer(level, name).fill_(float("nan"))
            device = self._buffer(level, "threshold").device
            setattr(self, f"_{level}_normal_scores", torch.empty(0, device=device))
        self._unmoved = None

    def load_calibration(self, calibration: Calibration) -> None:
        """Take threshold and normal scores over."""
        self.target_fpr = calibration.target_fpr
        for name, level in zip(LEVELS, (calibration.image, calibration.pixel), strict=True):
            if level is not None:
                self._set_level(name, torch.tensor(level.normal_scores), level.typical)

    def set_target_fpr(self, target_fpr: float) -> Calibration:
        """Move the threshold to where another share of normal images is expected above; scores move with it.

        Returns:
            The new threshold, and what to expect of it.

        Raises:
            ValueError: If ``target_fpr`` is not in (0, 1), or the model holds no normal validation scores.
        """
        check_share(target_fpr=target_fpr)
        if self.calibration is None:
            raise ValueError(NO_CALIBRATION)
        self.target_fpr, self._unmoved = target_fpr, None
        for level in LEVELS:
            if len(self._buffer(level, "normal_scores")):
                self._move(level)
        calibration = self.calibration
        rate = calibration.expected_rate()
        logger.info(
            "target_fpr=%g: the threshold is %.6g; %.1f %% of new normal images are expected above it (95 %% interval "
            "%.1f to %.1f %%, from %d validation images).",
            target_fpr, calibration.image.threshold, *(100 * value for value in rate), calibration.count,
        )  # fmt: skip
        self.warn_of_few()
        return calibration

    @property
    def calibration(self) -> Calibration | None:
        """Threshold and normal validation scores; None where an older checkpoint has none."""
        levels = {level: self._level(level) for level in LEVELS}
        if levels["image"] is None:
            return None
        return Calibration(
            self.target_fpr,
            levels["image"],
            levels["pixel"],
            sensitivity=self.image_sensitivity,
            normalized=self.enable_normalization,
        )

    def _level(self, level: str) -> Level | None:
        scores = self._buffer(level, "normal_scores")
        if not len(scores):
            return None
        numbers = {name: self._buffer(level, name).item() for name in ("threshold", "scale", "typical")}
        return Level(**numbers, normal_scores=tuple(scores.tolist()))

    def _buffer(self, level: str, name: str) -> Tensor:
        return getattr(self, f"_{level}_{name}")

    def _move(self, level: str) -> None:
        typical = self._buffer(level, "typical").item()
        scores = self._buffer(level, "normal_scores").cpu().numpy()
        self._set_statistics(level, *threshold_and_scale(scores, typical, self.target_fpr))

    def _set_statistics(self, level: str, threshold: np.float32, scale: np.float32) -> None:
        self._buffer(level, "threshold").fill_(float(threshold))
        self._buffer(level, "scale").fill_(float(scale))

    def warn_of_few(self) -> None:
        """Say so when there were too few normal images for ``target_fpr``."""
        count = len(self._buffer("image", "normal_scores"))
        if count and not allowed_rank(count, self.target_fpr):
            logger.warning(
                "%d normal validation images are too few for target_fpr=%g: the threshold is their largest score, and "
                "%.0f %% of all normal images are expected above it. Validate at least %d: raise the data's "
                "val_split_ratio.",
                count,
                self.target_fpr,
                100 / (count + 1),
                needed_images(self.target_fpr),
            )

    # ---------------------------------------------------------------------------------------------------- checkpoints

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "target_fpr")

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take the options of a checkpoint over that were not given here."""
        super().load_checkpoint_config(config)
        other = {name: value for name, value in self._given.items() if config.get(name, value) != value}
        for name, value in other.items():
            logger.info("%s=%s as given; the checkpoint's is %s.", name, value, config[name])
            setattr(self, name, value)
        self._unmoved = config["target_fpr"] if "target_fpr" in other else None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for level in LEVELS:
            scores = state_dict.get(f"{prefix}_{level}_normal_scores", torch.empty(0))
            setattr(self, f"_{level}_normal_scores", torch.empty_like(scores, device=self._image_threshold.device))
            # an older version's checkpoint has neither
            state_dict.setdefault(f"{prefix}_{level}_normal_scores", scores)
            state_dict.setdefault(f"{prefix}_{level}_typical", torch.tensor(float("nan")))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._unmoved is not None:  # every time: Lightning loads some modules twice
            for level in LEVELS:
                if len(self._buffer(level, "normal_scores")):
                    self._move(level)

    def require_moved(self) -> None:
        """Refuse a threshold that could not follow a ``target_fpr`` that was given beside a checkpoint.

        Raises:
            ValueError: If it is still the checkpoint's.
        """
        if self._unmoved is not None and self.calibration is None:
            msg = f"target_fpr={self.target_fpr} was given, the checkpoint's is {self._unmoved}. {NO_CALIBRATION}"
            raise ValueError(msg)

    # --------------------------------------------------------------------------------------------------------- scores

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process the output of an exported model: the same numbers as in the engine.

        Raises:
            ValueError: If there is neither score nor map.
        """
        score, maps = predictions.pred_score, predictions.anomaly_map
        if score is None:
            if maps is None:
                msg = "At least one of pred_score or anomaly_map must be provided."
                raise ValueError(msg)
            score = torch.amax(maps, dim=(-2, -1))
        label = mask = None
        if self.enable_thresholding:
            label, mask = self._is_novel(score, "image"), self._is_novel(maps, "pixel")
        if self.enable_normalization:
            score, maps = self._scale(score, "image"), self._scale(maps, "pixel")
        return InferenceBatch(pred_score=score, pred_label=label, anomaly_map=maps, pred_mask=mask)

    def post_process_batch(self, batch: Batch) -> None:
        """Label and scale a batch in place; ``raw_score`` are its scores before, ``p_value`` what they mean."""
        batch.raw_score = batch.pred_score
        normal = self._buffer("image", "normal_scores")
        if batch.pred_score is not None and len(normal):
            batch.p_value = torch.from_numpy(p_values(batch.pred_score.float().cpu(), normal.cpu()))
        done = self.forward(InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map))
        for field in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
            if getattr(done, field) is not None:
                setattr(batch, field, getattr(done, field))

    def _is_novel(self, values: Tensor | None, level: str) -> Tensor | None:
        """Compare raw values with the threshold, moved by the sensitivity (0.5 leaves it where it is).

        Returns:
            None where there is no threshold: "normal" would be a claim.
        """
        if values is None:
            return None
        sensitivity = self.image_sensitivity if level == "image" else self.pixel_sensitivity
        threshold = self.image_threshold if level == "image" else self.pixel_threshold
        if not torch.compiler.is_compiling() and threshold.isnan():  # there is no export without one
            return None
        if sensitivity == 0.5:
            return (values > threshold) | values.isnan()  # no number is no reason to trust an image
        return (self._scale(values, level) > 1 - sensitivity) | values.isnan()

    def _scale(self, values: Tensor | None, level: str) -> Tensor | None:
        if values is None:
            return None
        threshold = self.image_threshold if level == "image" else self.pixel_threshold
        scale = getattr(self, f"_{level}_scale")
        # without validation images the order is still kept
        distance = values - threshold.nan_to_num(0.0)
        return 0.5 + 0.5 * (distance / (scale.nan_to_num(1.0) + distance.abs()))
