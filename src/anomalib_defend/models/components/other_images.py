"""Images beside the normal ones, from a folder of the user's: what they may not be, and how a training reads them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import AnomalibDataset
from pandas import DataFrame
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_defend.files.equal import equal_files, find_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    argument: str, folder: str | Path, training: Iterable[str], test: Iterable[str], subfolders: bool = False
) -> list[Path]:
    """The images of a folder, sorted; each is decoded once.

    Args:
        argument: What names the folder.
        folder: The folder.
        training: The normal training images, none of which may be among them, nor a copy of one.
        test: The test images, likewise: nothing may be trained on them.
        subfolders: Look at those, too.

    Raises:
        ValueError: If it is no folder, holds no images or images of the data set, or a file cannot be read.
    """
    where, root = f"{argument}={str(folder)!r}", Path(folder).expanduser()
    if not root.is_dir():
        msg = f"{where} is not a folder (working directory {Path.cwd()})."
        raise ValueError(msg)
    found = root.rglob("*") if subfolders else root.iterdir()
    paths = sorted(path for path in found if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        which = "" if subfolders else "; subfolders are not looked at"
        msg = f"{where} holds no images ({', '.join(IMG_EXTENSIONS)}){which}."
        raise ValueError(msg)
    for which, images in (("normal training", training), ("test", test)):
        both = _shared(paths, images)
        if both:
            msg = f"{where} holds {len(both)} of the {which} images ({both[0]}): they must be others."
            raise ValueError(msg)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        problems = [problem for problem in pool.map(_problem, paths) if problem]
    if problems:
        msg = f"{where}: {len(problems)} of {len(paths)} files are not usable images: {', '.join(problems[:3])}."
        raise ValueError(msg)
    return paths


def _shared(paths: Iterable[Path], images: Iterable[str]) -> list[Path]:
    """Those of the paths that lead to one of the images, or have the same bytes as one."""
    ours, theirs = find_files(map(str, paths)), find_files(images)
    known = {file.key for file in theirs.values()}
    files = {file.key: file for file in (*ours.values(), *theirs.values())}
    keys = {file.path: file.key for file in files.values()}
    for group in equal_files(files.values()):
        if any(keys[path] in known for path in group):
            known.update(keys[path] for path in group)
    return [path for path in paths if (file := ours.get(str(path))) and file.key in known]


def _problem(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path.name} ({error})"
    return ""


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
