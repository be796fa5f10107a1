"""What ``anomalib-defend threshold`` does: the threshold of a checkpoint or an export, told, moved or computed anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conformal import allowed_rank, check_share, needed_images

if TYPE_CHECKING:
    from .calibration import Calibration

CONDITION = (
    "This holds for images like the validation images: not for another camera, near duplicates, or frames of one video."
)


def threshold(
    model: Path,
    target_fpr: float | None = None,
    calibrate: Path | None = None,
    hint: str | None = None,
    labels: bool | None = None,
    output: Path | None = None,
) -> Path | None:
    """Tell the threshold of a model, or write the model with another one; the old one stays as it is.

    Args:
        model: A checkpoint (.ckpt), an OpenVINO (.xml) or ONNX model (.onnx), or a folder with one export.
        target_fpr: Share of new normal images that may be called novel.
        calibrate: Folder of normal images that trained nothing: the threshold is computed anew from what the model says
            of them, which is right for an export of 8 bits, another precision, another camera, or more images.
        hint: OpenVINO's precision (f32, bf16) to calibrate in, as it is used later; its own default otherwise.
        labels: For a checkpoint: false leaves labels out of predictions and exports, which then need no threshold.
        output: Where the new model is written; beside the old one by default.

    Returns:
        The new model; None if there is none.

    Raises:
        FileExistsError: If ``output`` is there already.
        FileNotFoundError: If there is no model, no image, or no calibration.
        ValueError: If an argument does not fit.
    """
    from anomalib_defend.files.names import to_text  # noqa: PLC0415 - torchvision

    from .models import Checkpoint, open_model  # noqa: PLC0415 - torch and anomalib

    if target_fpr is not None:
        check_share(target_fpr=target_fpr)
    if hint is not None and calibrate is None:
        msg = f"hint={hint!r} says how the images of --calibrate are scored: give a folder of normal images."
        raise ValueError(msg)
    path = Path(model)
    opened = open_model(path)
    calibration: Calibration | None = None
    if calibrate is not None:
        images = _images(Path(calibrate))
        target = _known_target(opened) if target_fpr is None else target_fpr
        print(f"Scoring {len(images)} images of {to_text(str(calibrate))}.", flush=True)
        calibration = _calibrated(opened, images, target, hint)
    elif labels is None or target_fpr is not None:
        calibration = opened.calibration()
        if target_fpr is not None:
            calibration = calibration.moved(target_fpr)
    if calibration is not None:
        print(describe(calibration))
    if target_fpr is None and calibrate is None and labels is None:
        return None
    target_path = _new_file(path, output)
    written = to_text(str(target_path))
    if isinstance(opened, Checkpoint):
        opened.save(target_path, calibration, labels)
        following = f"anomalib export --model {opened.model_name} --ckpt_path {written} --export_type openvino"
    else:
        assert calibration is not None  # noqa: S101 - an export has nothing else to change
        opened.save(target_path, calibration, labels)
        following = f"anomalib-defend threshold {written}"
    print(f"Written: {written}\nNext: {following}")
    return target_path


def _new_file(model: Path, output: str | Path | None) -> Path:
    """Where the model with another threshold is written: beside the old one, or as ``output`` says.

    Raises:
        FileExistsError: If it is there already.
        ValueError: If it has another ending.
    """
    exports = (file for file in sorted(model.iterdir()) if file.suffix in {".xml", ".onnx"}) if model.is_dir() else ()
    source = next(iter(exports), model)
    target = source.with_name(f"{source.stem}-threshold{source.suffix}") if output is None else Path(output)
    if target.suffix != source.suffix:
        msg = f"output={str(target)!r} must end with {source.suffix}, as {source.name} does."
        raise ValueError(msg)
    if target.exists():
        msg = f"{target} exists: give another --output, or remove it."
        raise FileExistsError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def describe(calibration: Calibration) -> str:
    """Say in words what a threshold promises."""
    rate, hundred = calibration.expected_rate(), calibration.expected_count(100)
    count = calibration.count
    lines = [
        f"threshold {calibration.label_threshold:.6g} (raw score; 0.5 as pred_score) for "
        f"target_fpr={calibration.target_fpr:g}, from {count} normal images (arithmetic: {calibration.arithmetic})",
        f"expected of new normal images: {100 * rate.mean:.1f} % are called novel; given these {count} images, between "
        f"{100 * rate.low:.1f} and {100 * rate.high:.1f} % (95 % interval); of 100 images {hundred.low:.0f} to "
        f"{hundred.high:.0f}",
        f"least p-value: {1 / (count + 1):.3g}",
        CONDITION,
    ]
    if calibration.sensitivity != 0.5:
        lines[0] = lines[0].replace("0.5 as", f"{1 - calibration.sensitivity:g} as")
        lines.append(f"image_sensitivity={calibration.sensitivity:g} has moved the labels away from target_fpr.")
    if not allowed_rank(count, calibration.target_fpr):
        lines.append(
            f"{count} images are too few for target_fpr={calibration.target_fpr:g}: the threshold is their largest "
            f"score. {needed_images(calibration.target_fpr)} are needed."
        )
    return "\n".join(lines)


def _images(folder: Path) -> list[Path]:
    from anomalib_defend.files.equal import each_once  # noqa: PLC0415 - torchvision
    from anomalib_defend.files.images import images_in  # noqa: PLC0415 - torchvision
    from anomalib_defend.files.names import on_disk, to_text  # noqa: PLC0415 - torchvision

    found = on_disk(folder)
    if not found.is_dir():
        msg = f"calibrate={to_text(str(folder))!r} is no folder: give one of normal images that trained nothing."
        raise FileNotFoundError(msg)
    images = each_once(images_in(found))  # one that counted twice would move the threshold
    if not images:
        msg = f"calibrate={to_text(str(folder))!r} holds no image: give a folder of normal images that trained nothing."
        raise FileNotFoundError(msg)
    return [Path(path) for path in images]


def _known_target(opened: Any) -> float:
    try:
        return opened.target_fpr
    except (FileNotFoundError, ValueError) as error:
        msg = f"The model does not say for which rate: give --target_fpr, for example 0.05 ({error})"
        raise ValueError(msg) from error


def _calibrated(opened: Any, images: list[Path], target_fpr: float, hint: str | None) -> Calibration:
    from anomalib_defend.files.names import to_text  # noqa: PLC0415 - torchvision

    from .calibration import Calibration  # noqa: PLC0415 - numpy
    from .models import measure  # noqa: PLC0415 - torch and anomalib

    measured = measure(opened.raw_outputs(hint), images)
    wrong = [path for path, score in zip(images, measured.image, strict=True) if not abs(score) < float("inf")]
    if wrong:
        msg = (
            f"The score of {to_text(str(wrong[0]))} is no number: the model's weights are damaged, or the hint does "
            "not suit it."
        )
        raise ValueError(msg)
    image = measured.level("image", target_fpr)
    assert image is not None  # noqa: S101 - there are images
    calibration = Calibration(target_fpr, image, measured.level("pixel", target_fpr))
    try:
        old = opened.calibration()
        calibration = replace(calibration, sensitivity=old.sensitivity, normalized=old.normalized)
    except (FileNotFoundError, ValueError):  # that is why it is calibrated
        pass
    return replace(calibration, arithmetic=opened.arithmetic(hint))
