"""Fake images on disk: sampled once, complete or absent, found again by later runs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.utils import read_image
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import to_dtype, to_pil_image
from torchvision.utils import make_grid

from anomalib_defend.files.equal import add_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1  # of the folder; part of the key
SAMPLED_AT_ONCE = 64
GRID_IMAGES, GRID_COLUMNS = 64, 8


class FakeCache:
    """The sampled fakes of one generator and data set: ``images/*.png``, a picture grid ``fakes.png``, the settings.

    The folder gets its name when it is complete. Until then it is ``<key>.part``; an interrupted run goes on from it.

    Args:
        root: Folder of all caches.
        key: What `fingerprint` returns.
        count: Number of fakes.
    """

    def __init__(self, root: Path, key: str, count: int) -> None:
        self.folder, self.count = root / key, count
        self._part = root / f"{key}.part"
        self.names = [f"{index:06d}.png" for index in range(count)]

    @property
    def grid(self) -> Path:
        """A picture of the first fakes."""
        return self.folder / "fakes.png"

    @property
    def paths(self) -> list[Path]:
        """The fakes' files."""
        return [self.folder / "images" / name for name in self.names]

    @property
    def steps(self) -> int | None:
        """Steps that the generator took, if the settings still say so."""
        try:
            return int(json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))["steps"])
        except (OSError, ValueError, KeyError):
            return None

    @property
    def complete(self) -> bool:
        """Whether every fake is there."""
        return self.folder.is_dir() and all(path.is_file() for path in self.paths)

    def sample(self, sample: Callable[[Sequence[int]], Tensor], rank: int = 0, processes: int = 1) -> None:
        """Write what is not there yet of one process's share.

        Args:
            sample: Makes the images [n, 3, H, W] in [0, 1] of the given numbers.
            rank: Number of the process, from 0.
            processes: Number of processes.
        """
        if self.folder.is_dir() and rank == 0:  # files were removed from it
            self.folder.replace(self._part)
        images, start = self._part / "images", time.monotonic()
        images.mkdir(parents=True, exist_ok=True)
        for first in range(rank * SAMPLED_AT_ONCE, self.count, processes * SAMPLED_AT_ONCE):
            indices = range(first, min(first + SAMPLED_AT_ONCE, self.count))
            if not all((images / self.names[index]).is_file() for index in indices):
                for index, image in zip(indices, sample(indices), strict=True):
                    save_image(image, images / self.names[index])
            done = indices.stop
            if rank == 0:
                logger.info("Sampling fakes: %d of %d, %.0f s.", done, self.count, time.monotonic() - start)

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Give the folder its name, once all fakes are there.

        Args:
            settings: What the fakes were made with, for the reader.
        """
        images = self._part / "images"
        pictures = [read_image(images / name, as_tensor=True) for name in self.names[:GRID_IMAGES]]
        save_image(make_grid(torch.stack(pictures), nrow=GRID_COLUMNS, pad_value=1), self._part / "fakes.png")
        (self._part / "settings.json").write_text(json.dumps(settings, indent=2, default=str), encoding="utf-8")
        try:
            self._part.replace(self.folder)
        except OSError:  # another run has put the same fakes there
            if not self.complete:
                raise
            shutil.rmtree(self._part, ignore_errors=True)
        logger.info("%d fakes are in %s, a picture of them is %s.", self.count, self.folder, self.grid)


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, H, W] in [0, 1] as PNG; the file is complete or absent."""
    part = path.with_suffix(".part")
    to_pil_image(to_dtype(image.cpu(), torch.uint8, scale=True)).save(part, format="PNG")
    part.replace(path)


def fingerprint(settings: Mapping[str, Any], paths: Iterable[str]) -> str:
    """Key of a cache: whatever changes the fakes changes it.

    Args:
        settings: Of the generator and its training, as plain data.
        paths: The normal training images; name, size and time of the last change count.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True, default=str).encode())
    add_states(digest, paths)
    return digest.hexdigest()[:16]


class SmallImages:
    """Images as the generator sees them; each is read when it is first asked for, and kept.

    Args:
        size: Height and width.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: dict[str, Tensor] = {}

    def __call__(self, paths: Sequence[str]) -> Tensor:
        """Of these files, [n, 3, size, size] uint8."""
        absent = [path for path in dict.fromkeys(paths) if path not in self._images]
        if absent:
            self._images.update(zip(absent, small_images(absent, self._size), strict=True))
        return torch.stack([self._images[path] for path in paths])


def small_images(paths: Sequence[str], size: int) -> Tensor:
    """The images as the generator sees them, resized from their files: [n, 3, size, size] uint8."""
    resize = Resize([size, size], antialias=True)

    def read(path: str) -> Tensor:
        return to_dtype(resize(read_image(path, as_tensor=True)), torch.uint8, scale=True)

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(read, paths)))
