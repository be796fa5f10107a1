"""The semantic novelty protocol as pure functions: categories + setting -> normal and novel images."""

import logging
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pandas import DataFrame, concat

from anomalib_defend.files.equal import File
from anomalib_defend.files.names import category_name, shortened_paths
from anomalib_defend.suggest import did_you_mean

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
    ids: Mapping[int | str, str] = {}


def with_category_names(annotations: Annotations) -> Annotations:
    """Return the annotations with every category's name in the form of ``category_name``.

    One that is called ``Größe`` in two Unicode forms is one category.
    """
    names = {name for image in annotations.images for name in image.categories}
    if all(category_name(name) == name for name in names.union(annotations.categories, annotations.ids.values())):
        return annotations
    images = [
        image._replace(categories=frozenset(map(category_name, image.categories))) for image in annotations.images
    ]
    ids = {number: category_name(name) for number, name in annotations.ids.items()}
    return Annotations(sorted(set(map(category_name, annotations.categories))), images, ids)


def resolve_categories(chosen: Iterable[str], annotations: Annotations) -> list[str]:
    """Return the names of categories that are given by name or by the data set's own number.

    Raises:
        ValueError: If there is no such category; the message lists those that exist.
    """
    names, ids = set(annotations.categories), {str(number): name for number, name in annotations.ids.items()}
    unknown = [name for name in chosen if name not in names and name not in ids]
    if unknown:
        numbered = sorted(annotations.ids.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        listed = [f"{number} {name}" for number, name in numbered] + sorted(names - set(annotations.ids.values()))
        near = "".join(did_you_mean(name, names) for name in unknown)
        msg = f"category: unknown {', '.join(map(repr, unknown))}.{near} Available are: {', '.join(listed)}."
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
    held: dict[str, frozenset[str]] = {}  # categories by path
    in_both: set[str] = set()
    for image in images:
        if splits.setdefault(image.path, image.split) != image.split:
            in_both.add(image.path)
        held[image.path] = held.get(image.path, frozenset()) | image.categories
    if in_both:
        msg = (
            f"{len(in_both)} image(s) are listed for training and for test, so the test would leak: "
            f"{shortened_paths(sorted(in_both))}. Remove them from one of the two."
        )
        raise ValueError(msg)

    rows = sorted((path, split, not held[path].isdisjoint(normal), held[path]) for path, split in splits.items())
    return _frame(row for row in rows if row[1] == "test" or row[2])


def one_row_a_file(samples: DataFrame, files: Mapping[str, File]) -> DataFrame:
    """Return the frame with each file once, as it is spelled on disk, whatever paths lead to it.

    A test image is normal if it is normal under one of its paths: it holds what all of them say. Paths that lead to
    nothing stay as they are.

    Args:
        samples: Frame as ``make_samples`` returns it.
        files: What the paths lead to, as ``find_files`` returns it.

    Raises:
        ValueError: If a file is used for training and for test.
    """
    rows: dict[Hashable, _Row] = {}
    leaks: list[str] = []
    for path, split, is_normal, categories in _rows(samples):
        key = files[path].key if path in files else path
        first, first_split, was_normal, others = rows.setdefault(key, (path, split, is_normal, categories))
        if split != first_split:
            leaks.append(f"{path} = {first}")
        rows[key] = (first, first_split, is_normal or was_normal, categories | others)
    if leaks:
        msg = (
            f"{len(leaks)} image(s) are for training and for test under two paths that lead to the same file (by a "
            "link, '..' or a second name of a folder), so the test would leak: "
            f"{shortened_paths(leaks)}. Remove them from one of the two."
        )
        raise ValueError(msg)
    return _frame(sorted((files[row[0]].path if row[0] in files else row[0], *row[1:]) for row in rows.values()))


_Row = tuple[str, str, bool, frozenset[str]]
"""Of an image: path, split, whether it is normal, its categories."""

SEPARATOR = "; "  # of names of categories in one text; no name of a data set at hand has it


def _frame(rows: Iterable[_Row]) -> DataFrame:
    table = [
        (path, split, "normal" if normal else "novel", int(not normal), "", SEPARATOR.join(sorted(categories)))
        for path, split, normal, categories in rows
    ]
    columns = ["image_path", "split", "label", "label_index", "mask_path", "categories"]
    # object: where pyarrow is installed, pandas 3 makes strings Arrow's, which hold no names that are not UTF-8
    samples = DataFrame(table, columns=columns, dtype=object).astype({"label_index": int})
    samples.attrs["task"] = "classification"
    return samples


def _rows(samples: DataFrame) -> Iterator[_Row]:
    columns = ("image_path", "split", "label", "categories")
    for path, split, label, categories in zip(*(samples[name] for name in columns), strict=True):
        yield path, split, label == "normal", frozenset(filter(None, categories.split(SEPARATOR)))


def replace_novel(samples: DataFrame, novel_paths: list[str]) -> DataFrame:
    """Return the frame with other images in place of its novel test images.

    Raises:
        ValueError: If there are none, or one of them is in the frame as well.
    """
    kept = samples[samples["label"] == "normal"]
    both = sorted(set(kept["image_path"]) & set(novel_paths))
    if both or not novel_paths:
        problem = (
            f"{len(both)} image(s) are normal here: {shortened_paths(both)}" if both else "it has no such test image"
        )
        msg = f"novel_dataset: cannot take novel test images from it, {problem}. Choose another category of it."
        raise ValueError(msg)
    novel = _frame((path, "test", False, frozenset[str]()) for path in novel_paths)
    return concat([kept, novel]).sort_values("image_path", ignore_index=True)  # both have the same attrs


def describe_duplicates(samples: DataFrame, groups: list[list[str]]) -> str:
    """Say in a sentence or more how many images have the same bytes as others, or "" if none has.

    Args:
        samples: The images that are used.
        groups: Those with the same bytes, as ``equal_files`` returns them.
    """
    if not groups:
        return ""
    rows = dict(zip(samples["image_path"], zip(samples["split"], samples["label"], strict=True), strict=True))

    def examples(chosen: list[list[str]]) -> str:
        return shortened_paths(" = ".join(group[:2]) for group in chosen)

    msg = f"{sum(map(len, groups))} of {len(rows)} images have the same bytes as another one: {examples(groups)}."
    leaks = [sorted(group, key=lambda path: rows[path][0]) for group in groups]  # test before train
    leaks = [group for group in leaks if rows[group[0]][0] != rows[group[-1]][0]]
    copies = sum(rows[path][0] == "test" for group in leaks for path in group)
    if copies:
        ends = [[group[0], group[-1]] for group in leaks]
        msg += f" {copies} test image(s) are copies of training images, so the test leaks: {examples(ends)}."
    both = [group for group in groups if len({rows[path][1] for path in group}) > 1]
    if both:
        msg += f" {len(both)} of them are normal under one name and novel under another: {examples(both)}."
    return msg


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
