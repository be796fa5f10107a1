"""Models with random weights, which cost what trained ones do, and images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalib_defend.models import Defend
from anomalib_defend.nn.vit import create_vit

PHOTOGRAPH = (375, 500)  # height and width of the usual file of Pascal VOC


def random_model(backbone: str, image_size: int | None = None) -> Defend:
    """A model that counts as trained, the same one in every call."""
    torch.manual_seed(0)
    model = Defend(backbone, pre_trained=False, image_size=image_size, visualizer=False)
    model.model.reset_student()
    teacher = create_vit(backbone, model.model.image_size)
    model.model.teacher.load_state_dict(teacher.state_dict())
    model.trained_steps.fill_(1)
    model.post_processor.enable_thresholding = False  # nothing was validated
    model.model.teacher.eval()
    return model


def random_images(count: int, size: tuple[int, int]) -> Tensor:
    """Images in [0, 1] with structure of several patches, [count, 3, *size]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return (images + 0.1 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of the size, and about the number of bytes, of usual photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.jpg" for index in range(count)]
    for path, image in zip(paths, random_images(count, PHOTOGRAPH), strict=True):
        pixels = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=85)
    return paths


def photographs(folder: Path | None, count: int, temporary: Path) -> list[Path]:
    """The first image files of a folder, over and over if it holds fewer; generated ones if there is no folder.

    Raises:
        ValueError: If the folder holds no JPEG or PNG file.
    """
    if folder is None:
        return write_photographs(temporary / "normal", count)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})[:count]
    if not files:
        msg = f"--images {folder} holds no .jpg or .png file."
        raise ValueError(msg)
    return [files[index % len(files)] for index in range(count)]
