"""Multi-object scenes composed from scikit-learn's handwritten digits, written in Pascal VOC layout.

The 1,797 digits (8 x 8, real handwriting) are split once into four parts that never share a digit: two to pretrain the
example's teacher and to check it, two for the training and the test scenes of the example.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from anomalib_defend.suggest import did_you_mean

CATEGORIES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCENE_SIZE = 96
DIGIT_SIZES = (40, 44)  # side in pixels of the 8 x 8 tile after upscaling: smallest, largest
SPLIT_SEED = 0
RECIPE_FILE = "scenes.json"  # written last: how the scenes were made

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, end-exclusive
Part = Literal["pretrain", "pretrain_val", "train", "val"]
_SHARES: dict[Part, float] = {"pretrain": 0.54, "pretrain_val": 0.06, "train": 0.26, "val": 0.14}


@dataclass(frozen=True)
class Digits:
    """Some of the handwritten digits.

    Attributes:
        images: ``(n, 8, 8)`` float32 ink in [0, 1].
        labels: ``(n,)`` the digit, 0 to 9.
        indices: ``(n,)`` row numbers in ``sklearn.datasets.load_digits``.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class SceneObject:
    """One digit of a scene: its class and the box of its ink."""

    label: int
    box: Box


@dataclass(frozen=True)
class Scene:
    """A composed image, ``(96, 96, 3)`` uint8, and the objects it shows."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


@cache
def load_part(part: Part) -> Digits:
    """Return one of the four disjoint parts of the digits, each with the same share of every class."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(SPLIT_SEED)
    names = list(_SHARES)
    ends = np.cumsum(list(_SHARES.values()))
    chosen = []
    for label in range(len(CATEGORIES)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.round(ends[:-1] * len(rows)).astype(int)
        chosen.append(np.split(rows, cuts)[names.index(part)])
    indices = np.sort(np.concatenate(chosen))
    ink = (images[indices] / 16.0).astype(np.float32).reshape(-1, 8, 8)
    return Digits(ink, labels[indices], indices)


def draw_classes(
    rng: np.random.Generator, count: int, *, present: int | None = None, absent: int | None = None
) -> list[int]:
    """Draw ``count`` different digit classes, with ``present`` among them and without ``absent``."""
    others = [label for label in range(len(CATEGORIES)) if label not in (present, absent)]
    fixed = [] if present is None else [present]
    drawn = rng.choice(others, size=count - len(fixed), replace=False).tolist()
    return rng.permutation(fixed + drawn).tolist()


def compose_scene(
    digits: Digits,
    classes: Sequence[int],
    rng: np.random.Generator,
    size: int = SCENE_SIZE,
    digit_sizes: tuple[int, int] = DIGIT_SIZES,
) -> Scene:
    """Paste one random digit of each class at random sizes, places and colours on a random noisy background.

    Args:
        digits: Where the digits are taken from.
        classes: The class of each object; at most four, so that they fit without overlap.
        rng: The only source of randomness.
        size: Side of the scene in pixels.
        digit_sizes: Smallest and largest side of a digit's tile in pixels.
    """
    canvas = _background(size, rng)
    tiles = [digits.images[rng.choice(np.flatnonzero(digits.labels == label))] for label in classes]
    boxes = None
    while boxes is None:  # some sizes leave no room: then others are drawn
        sides = rng.integers(digit_sizes[0], digit_sizes[1] + 1, size=len(tiles))
        inks = [_upscale(tile, int(side)) for tile, side in zip(tiles, sides, strict=True)]
        boxes = _place([ink.shape for ink in inks], size, rng)
    for ink, (left, top, right, bottom) in zip(inks, boxes, strict=True):
        colour = rng.uniform(0.55, 1.0, size=3).astype(np.float32)
        alpha = ink[..., None]
        window = canvas[top:bottom, left:right]
        window += alpha * (colour - window)
    image = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    objects = tuple(SceneObject(int(label), box) for label, box in zip(classes, boxes, strict=True))
    return Scene(image, objects)


def _background(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A gradient between two dark colours in a random direction, with mild noise: ``(size, size, 3)`` around [0, 1]."""
    start, end = rng.uniform(0.0, 0.4, size=(2, 3)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    ramp = (ramp / np.abs(ramp).max() + 1) / 2
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    return start + ramp[..., None] * (end - start) + 0.04 * noise


def _upscale(tile: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Upscale an 8 x 8 tile to ``size`` pixels a side and crop it to its ink."""
    ink = np.asarray(Image.fromarray(tile).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    rows = np.flatnonzero(ink.max(axis=1) > 0.2)
    columns = np.flatnonzero(ink.max(axis=0) > 0.2)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(shapes: Sequence[tuple[int, ...]], size: int, rng: np.random.Generator) -> list[Box] | None:
    """Draw positions until no two boxes overlap; None where 100 attempts have failed."""
    for _ in range(100):
        boxes: list[Box] = []
        for height, width in shapes:
            left, top = (int(rng.integers(0, size - side + 1)) for side in (width, height))
            box = (left, top, left + width, top + height)
            if any(_overlap(box, other) for other in boxes):
                break
            boxes.append(box)
        else:
            return boxes
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def compose_split(part: Part, count: int, normal: int, normal_count: int, rng: np.random.Generator) -> list[Scene]:
    """Compose ``count`` scenes of two digits, of which the first ``normal_count`` hold the ``normal`` digit.

    Args:
        part: The part of the digits they are made of.
        count: Number of scenes.
        normal: The normal digit.
        normal_count: Number of scenes that hold it; the others hold two other digits.
        rng: The only source of randomness.
    """
    digits = load_part(part)
    scenes = []
    for i in range(count):
        rule = {"present": normal} if i < normal_count else {"absent": normal}
        scenes.append(compose_scene(digits, draw_classes(rng, 2, **rule), rng))
    return [scenes[i] for i in rng.permutation(count)]


def write_voc(
    root: str | Path, num_train: int = 400, num_test: int = 200, normal: str = "three", seed: int = 0
) -> Path:
    """Write the scenes as a Pascal VOC devkit folder, ``root/VOC2012``; scenes that are already there are kept.

    The ``train`` lists hold ``num_train`` scenes with the normal digit and a tenth as many without it; of the ``val``
    lists' scenes every second holds it. Every scene shows two different digits. The folder appears complete or not at
    all.

    Args:
        root: Folder that receives ``VOC2012``; created where missing.
        num_train: Number of training scenes that hold the normal digit.
        num_test: Number of test scenes.
        normal: The normal digit, a name of ``CATEGORIES``.
        seed: The same seed gives the same files.

    Returns:
        The path of ``VOC2012``.

    Raises:
        ValueError: If ``normal`` is no digit.
        FileExistsError: If the folder exists with something else in it.
    """
    if normal not in CATEGORIES:
        near = did_you_mean(normal, CATEGORIES)
        msg = f"normal={normal!r} is not a digit: choose one of {', '.join(CATEGORIES)}.{near}"
        raise ValueError(msg)
    recipe: dict[str, int | str] = {"num_train": num_train, "num_test": num_test, "normal": normal, "seed": seed}
    target = Path(root) / "VOC2012"
    if _is_complete(target, recipe):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    rng, digit = np.random.default_rng(seed), CATEGORIES.index(normal)
    splits = {
        "train": compose_split("train", num_train + num_train // 10, digit, num_train, rng),
        "val": compose_split("val", num_test, digit, num_test // 2, rng),
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".scenes-") as scratch:
        draft = Path(scratch) / target.name
        _write_devkit(draft, splits)
        (draft / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n")
        try:
            draft.rename(target)
        except OSError:  # another process was faster
            if not _is_complete(target, recipe):
                raise
    return target


def _is_complete(target: Path, recipe: dict[str, int | str]) -> bool:
    """Tell whether the scenes of this recipe are there already."""
    if not target.exists():
        return False
    found = target / RECIPE_FILE
    if found.is_file() and json.loads(found.read_text()) == recipe:
        return True
    msg = f"{target} holds other data than {recipe}: remove it, or choose another root."
    raise FileExistsError(msg)


def _write_devkit(folder: Path, splits: dict[str, list[Scene]]) -> None:
    """Write images, annotations and the lists ``<category>_{train,val,trainval}.txt`` below a new folder."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    ids = {name: [f"{name}_{i:06d}" for i in range(len(scenes))] for name, scenes in splits.items()}
    labels: dict[str, set[int]] = {}
    for name, scenes in splits.items():
        for image_id, scene in zip(ids[name], scenes, strict=True):
            Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=95)
            _annotation(image_id, scene).write(folder / "Annotations" / f"{image_id}.xml")
            labels[image_id] = {item.label for item in scene.objects}
    ids["trainval"] = ids["train"] + ids["val"]
    main = folder / "ImageSets" / "Main"
    for name, listed in ids.items():
        (main / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in listed))
        for digit, category in enumerate(CATEGORIES):
            lines = [f"{image_id} {1 if digit in labels[image_id] else -1:2d}\n" for image_id in listed]
            (main / f"{category}_{name}.txt").write_text("".join(lines))


def _annotation(image_id: str, scene: Scene) -> ET.ElementTree:
    """Build the VOC annotation of a scene; VOC counts pixels from 1 and includes the last."""
    root = ET.Element("annotation")
    height, width, depth = scene.image.shape
    fields = {"folder": "VOC2012", "filename": f"{image_id}.jpg", "segmented": "0"}
    for tag, text in fields.items():
        ET.SubElement(root, tag).text = text
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", depth)):
        ET.SubElement(size, tag).text = str(value)
    for item in scene.objects:
        node = ET.SubElement(root, "object")
        facts = {"name": CATEGORIES[item.label], "pose": "Unspecified", "truncated": "0", "difficult": "0"}
        for tag, text in facts.items():
            ET.SubElement(node, tag).text = text
        left, top, right, bottom = item.box
        box = ET.SubElement(node, "bndbox")
        for tag, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ET.SubElement(box, tag).text = str(value)
    ET.indent(root, "\t")
    return ET.ElementTree(root)
