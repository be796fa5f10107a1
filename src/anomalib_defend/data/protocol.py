"""The semantic novelty protocol as pure functions: categories + setting -> normal and novel images."""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from anomalib.data.utils import LabelName
from pandas import DataFrame, concat

from anomalib_defend.data.dataset import shortened

logger = logging.getLogger(__name__)

Setting = Literal["uni_class", "leave_one_out"]


class AnnotatedImage(NamedTuple):
    """One image of a data set: its file, the categories it holds an object of, and its official split."""

    path: str
    categories: frozenset[str]
    split: Literal["train", "test"]


class Annotations(NamedTuple):
    """What a format reads: every category, every image, and the data set's own numbers of the categories, if any."""

    categories: Collection[str]
    images: list[AnnotatedImage]
    ids: Mapping[int, str] = {}


def resolve_categories(chosen: Iterable[str], annotations: Annotations) -> list[str]:
    """Return the names of categories that are given by name or by the data set's own number.

    Raises:
        ValueError: If there is no such category; the message lists those that exist.
    """
    names, ids = set(annotations.categories), {str(number): name for number, name in annotations.ids.items()}
    unknown = [name for name in chosen if name not in names and name not in ids]
    if unknown:
        listed = [f"{number} {name}" for number, name in sorted(annotations.ids.items())] or sorted(names)
        msg = f"category: unknown {', '.join(map(repr, unknown))}. Available are: {', '.join(listed)}."
        raise ValueError(msg)
    return sorted({name if name in names else ids[name] for name in chosen})


def normal_categories(available: Collection[str], chosen: Collection[str], setting: Setting) -> frozenset[str]:
    """Return the normal categories: the chosen ones (``uni_class``) or all others (``leave_one_out``).

    Args:
        available: Every category of the data set.
        chosen: The user's categories, names of ``available``.
        setting: Whether the chosen categories are normal or novel.

    Raises:
        ValueError: If no category is left to be normal.
    """
    normal = frozenset(chosen) if setting == "uni_class" else frozenset(available) - frozenset(chosen)
    if not normal:
        msg = (
            f"category: setting='leave_one_out' leaves no normal category when all are chosen. "
            f"Choose fewer than all of: {', '.join(sorted(available))}."
        )
        raise ValueError(msg)
    return normal


def make_samples(images: Iterable[AnnotatedImage], normal: Collection[str]) -> DataFrame:
    """Return anomalib's samples frame: all test images, and the training images with a normal-category object.

    An image is normal if it holds at least one object of a normal category, whatever else it shows. An image that is
    listed several times in one split appears once, with the union of its categories.

    Args:
        images: Every annotated image of the data set.
        normal: The normal categories.

    Raises:
        ValueError: If an image belongs to both the training and the test split.
    """
    splits: dict[str, str] = {}
    normal_paths: set[str] = set()
    in_both: set[str] = set()
    for image in images:
        if splits.setdefault(image.path, image.split) != image.split:
            in_both.add(image.path)
        if not image.categories.isdisjoint(normal):
            normal_paths.add(image.path)
    if in_both:
        msg = (
            f"{len(in_both)} image(s) are listed for training and for test, so the test would leak: "
            f"{', '.join(sorted(in_both)[:3])}. Remove them from one of the two lists."
        )
        raise ValueError(msg)

    paths = sorted(path for path, split in splits.items() if split == "test" or path in normal_paths)
    labels = [LabelName.NORMAL if path in normal_paths else LabelName.ABNORMAL for path in paths]
    return _frame(paths, [splits[path] for path in paths], labels)


def _frame(paths: list[str], splits: list[str], labels: list[LabelName]) -> DataFrame:
    samples = DataFrame(
        {
            "image_path": paths,
            "split": splits,
            "label": ["novel" if label == LabelName.ABNORMAL else "normal" for label in labels],
            "label_index": [int(label) for label in labels],
            "mask_path": "",
        },
    )
    samples.attrs["task"] = "classification"
    return samples


def replace_novel(samples: DataFrame, novel_paths: list[str]) -> DataFrame:
    """Return the frame with other images in place of its novel test images.

    Raises:
        ValueError: If there are none, or one of them is in the frame as well.
    """
    kept = samples[samples["label"] == "normal"]
    both = sorted(set(kept["image_path"]) & set(novel_paths))
    if both or not novel_paths:
        problem = f"{len(both)} image(s) are normal here: {shortened(both)}" if both else "it has no such test image"
        msg = f"novel_dataset: cannot take novel test images from it, {problem}. Choose another category of it."
        raise ValueError(msg)
    novel = _frame(novel_paths, ["test"] * len(novel_paths), [LabelName.ABNORMAL] * len(novel_paths))
    return concat([kept, novel]).sort_values("image_path", ignore_index=True)  # both have the same attrs


def check_counts(annotations: Annotations, chosen: Collection[str], setting: Setting) -> None:
    """Refuse a chosen category with too few images of its own: two for training, or one for the test if it is novel.

    Raises:
        ValueError: If there is one; the message lists the categories that have enough.
    """
    split, needed = ("train", 2) if setting == "uni_class" else ("test", 1)
    paths: dict[str, set[str]] = {name: set() for name in annotations.categories}
    for image in annotations.images:
        if image.split == split:
            for name in image.categories & paths.keys():
                paths[name].add(image.path)
    for name in chosen:
        if len(paths[name]) < needed:
            enough = [f"{other} ({len(found)})" for other, found in sorted(paths.items()) if len(found) >= needed]
            msg = (
                f"category: {name!r} has {len(paths[name])} {split} image(s); setting={setting!r} needs at "
                f"least {needed}. Categories with enough: {', '.join(enough) or 'none'}."
            )
            raise ValueError(msg)


def check_splits(samples: DataFrame, chosen: Collection[str], setting: Setting, available: Collection[str]) -> None:
    """Refuse a training split with less than two images, and a test split that lacks normal or novel ones.

    Novel ones may be missing where every category is normal: training needs none, and the test is then one of false
    alarms, which is said.

    Raises:
        ValueError: If a split lacks images.
    """
    train, test = samples[samples["split"] == "train"], samples[samples["split"] == "test"]
    if len(train) < 2:
        msg = f"category: {len(train)} training image(s) hold a normal category; at least 2 are needed."
        raise ValueError(msg)
    labels = {"normal", "novel"}
    if set(available) <= set(chosen):
        if "novel" not in set(test["label"]):
            logger.warning("All categories are normal: without novel test images, the test counts false alarms alone.")
        labels = {"normal"}
    for label in sorted(labels):
        if label not in set(test["label"]):
            msg = (
                f"category: setting={setting!r} with {', '.join(chosen)} leaves no {label} image "
                f"among the {len(test)} test images. Available are: {', '.join(sorted(available))}."
            )
            raise ValueError(msg)


def subsample(samples: DataFrame, split: str, limit: int | None, seed: int | None) -> DataFrame:
    """Draw ``limit`` rows of a split, keeping the proportion of normal to novel and at least one of each."""
    rows = samples[samples["split"] == split]
    if limit is None or limit >= len(rows):
        return samples
    shuffled = rows.iloc[permutation(len(rows), seed)]
    normal, novel = (shuffled[shuffled["label"] == label].index.tolist() for label in ("normal", "novel"))
    num_normal = limit
    if novel:
        num_normal = min(max(round(limit * len(normal) / len(rows)), 1), limit - 1)
    dropped = normal[num_normal:] + novel[limit - num_normal :]
    return samples.drop(index=dropped).reset_index(drop=True)


def permutation(length: int, seed: int | None) -> list[int]:
    """Return the numbers below ``length`` in an order that the seed decides; ``None`` draws a new one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randperm(length, generator=generator).tolist()
