"""What a model's scores mean: its threshold, and the normal validation scores that p-values come from.

The same data is in a checkpoint (buffers of the post-processor) and in a JSON file beside an export:
``model.xml`` has ``model.calibration.json``. An export's graph has anomalib's outputs alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .conformal import allowed_rank, check_share, expected_count, expected_rate, p_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .conformal import Expected

FORMAT = 1
ENGINE = "the engine's, float32"


def threshold_and_scale(normal: ArrayLike, typical: float, target_fpr: float) -> tuple[np.float32, np.float32]:
    """Where a share ``target_fpr`` of new normal images is expected above, and the unit of scaled scores.

    Args:
        normal: Scores [n] of normal images, n at least 1.
        typical: The score that is scaled to 1/4.
        target_fpr: In (0, 1). Where n is too small for it, the threshold is the largest score.
    """
    ordered = np.sort(np.asarray(normal, dtype=np.float32))
    threshold = ordered[-max(1, allowed_rank(len(ordered), target_fpr))]
    scale = threshold - np.float32(typical)
    # all scores alike: any positive scale keeps the order
    return threshold, scale if scale > 0 else np.maximum(np.abs(threshold), np.float32(1e-6))


@dataclass(frozen=True)
class Level:
    """Threshold and normal scores of images, or of the largest values of their maps."""

    threshold: float
    """In raw scores: what lies above is novel."""
    scale: float
    """Distance from the threshold, in raw scores, at which a scaled score is 1/4 or 3/4."""
    typical: float
    """The median normal image: 1/4 once scaled."""
    normal_scores: tuple[float, ...] = field(repr=False)
    """Sorted; of normal images that trained nothing."""

    def scaled(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Raw scores as an exported model scales them, in float32."""
        distance = np.asarray(raw, dtype=np.float32) - np.float32(self.threshold)
        half = np.float32(0.5)
        return half + half * (distance / (np.float32(self.scale) + np.abs(distance)))

    def raw(self, scaled: ArrayLike) -> NDArray[np.float64]:
        """Scaled scores as they were before."""
        signed = 2 * np.asarray(scaled, dtype=np.float64) - 1
        with np.errstate(divide="ignore"):
            return self.threshold + self.scale * signed / (1 - np.abs(signed))

    def moved(self, target_fpr: float) -> Level:
        """The same normal scores with the threshold of another rate."""
        threshold, scale = threshold_and_scale(self.normal_scores, self.typical, target_fpr)
        return replace(self, threshold=float(threshold), scale=float(scale))


@dataclass(frozen=True)
class Calibration:
    """What is needed to decide from a model's scores.

    Raises:
        ValueError: If there is no normal score, or ``target_fpr`` is not in (0, 1).
    """

    target_fpr: float
    """Share of new normal images that is expected above the threshold, at most."""
    image: Level
    pixel: Level | None = None
    sensitivity: float = 0.5
    """anomalib's ``image_sensitivity``: labels are novel above a scaled score of 1 - sensitivity."""
    normalized: bool = True
    """``pred_score`` is scaled; otherwise it is the raw score."""
    arithmetic: str = ENGINE
    """Which arithmetic the normal scores were computed in: bfloat16 or 8 bits move scores."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_share(target_fpr=self.target_fpr)
        if not self.image.normal_scores:
            msg = "A calibration needs the score of at least one normal image."
            raise ValueError(msg)

    @property
    def count(self) -> int:
        """Number n of normal validation images."""
        return len(self.image.normal_scores)

    @property
    def label_threshold(self) -> float:
        """The raw score above which an image is labelled novel; ``sensitivity`` moves it, but no score."""
        return float(self.image.threshold if self.sensitivity == 0.5 else self.image.raw(1 - self.sensitivity))

    @property
    def rank(self) -> int:
        """k: labels are novel above the k-th largest normal score, or above a number next to it."""
        return 1 + sum(score > self.label_threshold for score in self.image.normal_scores)

    def expected_rate(self) -> Expected:
        """The rate of novel labels among new normal images."""
        return expected_rate(self.count, self.rank)

    def expected_count(self, images: int) -> Expected:
        """How many of ``images`` new normal images get the label novel."""
        return expected_count(self.count, self.rank, images)

    def moved(self, target_fpr: float) -> Calibration:
        """The same normal scores, and the threshold of another rate."""
        check_share(target_fpr=target_fpr)
        pixel = None if self.pixel is None else self.pixel.moved(target_fpr)
        return replace(self, target_fpr=target_fpr, image=self.image.moved(target_fpr), pixel=pixel)

    def content(self) -> dict[str, Any]:
        """What a JSON file of it holds."""
        from anomalib_defend import __version__  # noqa: PLC0415 - the package's root imports nothing of its parts

        return {"format": FORMAT, "written_by": f"anomalib-defend {__version__}", **asdict(self)}

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Calibration:
        """What ``content`` has told.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: If it is something else.
        """
        if content["format"] != FORMAT:
            msg = f"format {content['format']} is another than {FORMAT}"
            raise ValueError(msg)
        levels = {
            name: Level(**{**content[name], "normal_scores": tuple(map(float, content[name]["normal_scores"]))})
            for name in ("image", "pixel")
            if content[name] is not None
        }
        options = {name: content[name] for name in ("target_fpr", "sensitivity", "normalized", "arithmetic")}
        return cls(**options, image=levels["image"], pixel=levels.get("pixel"))

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(f"{json.dumps(self.content(), indent=1)}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a JSON file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not one that ``save`` has written.
        """
        if not path.is_file():
            msg = (
                f"{path} does not exist: the export is older than calibrations, or the file was left behind when the "
                "model was copied. Export anew, or calibrate: `anomalib-defend threshold MODEL --calibrate FOLDER`."
            )
            raise FileNotFoundError(msg)
        try:
            return cls.from_content(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{path} is no calibration that this version can read ({error!r}): export or calibrate anew."
            raise ValueError(msg) from error


def calibration_path(model: Path) -> Path:
    """Where the calibration of an export is: ``model.xml`` -> ``model.calibration.json``."""
    return model.with_suffix(".calibration.json")


def raw_score(pred_score: ArrayLike, calibration: Calibration) -> NDArray[np.float64]:
    """The scores before scaling, from ``pred_score`` of an engine or an exported model."""
    scores = np.asarray(pred_score, dtype=np.float64)
    return calibration.image.raw(scores) if calibration.normalized else scores


def p_value(pred_score: ArrayLike, calibration: Calibration) -> NDArray[np.float64]:
    """The share of normal images that are at least as novel, from ``pred_score`` of an engine or an exported model.

    Compared as scaled: what scaling makes equal counts as a tie, which keeps the p-values valid.
    """
    normal = np.asarray(calibration.image.normal_scores, dtype=np.float32)
    scores = np.asarray(pred_score, dtype=np.float32)
    return p_values(scores, calibration.image.scaled(normal) if calibration.normalized else normal)
