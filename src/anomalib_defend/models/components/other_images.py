"""Images beside the normal ones, from a folder of the user's: what they may not be, and how a training reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import AnomalibDataset
from pandas import DataFrame
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_defend.files.equal import each_once, equal_files, find_files
from anomalib_defend.files.images import images_in
from anomalib_defend.files.names import on_disk, shortened, to_text
from anomalib_defend.files.usable import inspect_files, warn_of_rotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from anomalib.data import Batch
    from torchvision.transforms.v2 import Transform

    from .run import Run


class OtherImages(AnomalibDataset):
    """Images that are not normal as a dataset, read and augmented as the normal ones are.

    Args:
        paths: The files.
        augmentations: Applied to each image.
    """

    def __init__(self, paths: Sequence[Path], augmentations: Transform | None) -> None:
        super().__init__(augmentations=augmentations)
        # object: pyarrow's strings, pandas' default where it is installed, hold no names that are not UTF-8
        table = DataFrame({"image_path": [str(path) for path in paths]}, dtype=object)
        self.samples = table.assign(split="train", label_index=1, mask_path="")
        self.samples.attrs["task"] = "classification"


def find_images(
    argument: str, folder: str | Path, data: Mapping[str, Iterable[str]], subfolders: bool = False
) -> list[Path]:
    """The images of a folder, each file once, sorted; each is decoded once.

    Args:
        argument: What names the folder.
        folder: The folder.
        data: The images of the data set by what they are for, none of which may be among them, nor a copy of one:
            nothing may be trained on validation and test images, and normal ones are normal.
        subfolders: Look at those, too.

    Raises:
        ValueError: If it is no folder, holds no images or images of the data set, or a file cannot be used.
    """
    where, root = f"{argument}={to_text(str(folder))!r}", on_disk(Path(folder).expanduser())
    if not root.is_dir():
        msg = f"{where} is not a folder (working directory {to_text(str(Path.cwd()))})."
        raise ValueError(msg)
    paths = each_once(images_in(root, subfolders=subfolders))
    if not paths:
        which = "" if subfolders else "; subfolders are not looked at"
        msg = f"{where} holds no images ({', '.join(IMG_EXTENSIONS)}){which}."
        raise ValueError(msg)
    for which, images in data.items():
        both = _shared(paths, images)
        if both:
            msg = f"{where} holds {len(both)} of the {which} images ({to_text(both[0])}): they must be others."
            raise ValueError(msg)
    unusable, rotated = inspect_files(paths, decode=True)
    if unusable:
        problems = shortened(f"{to_text(path)} ({reason})" for path, reason in unusable.items())
        msg = (
            f"{where}: {len(unusable)} of {len(paths)} files are not usable images: {problems}. Replace them, or take "
            "them out of the folder."
        )
        raise ValueError(msg)
    warn_of_rotation(rotated, len(paths))
    return [Path(path) for path in paths]


def _shared(paths: Iterable[str], images: Iterable[str]) -> list[str]:
    """Those of the paths that lead to one of the images, or have the same bytes as one."""
    ours, theirs = find_files(paths), find_files(images)
    known = {file.key for file in theirs.values()}
    files = {file.key: file for file in (*ours.values(), *theirs.values())}
    keys = {file.path: file.key for file in files.values()}
    for group in equal_files(files.values()):
        if any(keys[path] in known for path in group):
            known.update(keys[path] for path in group)
    return [path for path in paths if (file := ours.get(path)) and file.key in known]


def other_batches(run: Run, paths: Sequence[Path]) -> Iterator[Batch]:
    """Preprocessed batches for one epoch, one for each of the normal images.

    They come in an order of the epoch's own; all of them before one comes again.

    Args:
        run: The training.
        paths: The files.
    """
    images = run.images
    dataset = OtherImages(paths, images.dataset.augmentations)
    number = run.batches_per_epoch * (images.loader.batch_size or 1) * run.world_size
    generator = torch.Generator().manual_seed(run.seed + run.epoch)
    rounds = [torch.randperm(len(dataset), generator=generator) for _ in range(-(-number // len(dataset)))]
    order = torch.cat(rounds)[:number][run.rank :: run.world_size]
    for batch in images.read(dataset, order.tolist()):
        yield images.preprocess(batch)
