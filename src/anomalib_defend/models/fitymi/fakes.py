"""The fake images: sampled once, complete or absent, found again by later runs; or the user's own."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.utils import read_image
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import to_dtype, to_pil_image
from torchvision.utils import make_grid

from anomalib_defend.files.equal import add_states
from anomalib_defend.files.names import to_text
from anomalib_defend.models.components.other_images import find_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from anomalib_defend.models.components.run import Run

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


@dataclass(frozen=True)
class Lengths:
    """What the fakes take: as the arguments say, or for ``fast_dev_run`` as little as can be."""

    stop_step: int
    sampling_steps: int
    num_fakes: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any], run: Run) -> Lengths:
        """Those of a run."""
        images = arguments["num_fakes"] or len(run.images)
        if not run.is_trial:
            return cls(arguments["stop_step"], arguments["sampling_steps"], images)
        seen = run.batches_per_epoch * (run.images.loader.batch_size or 1)
        return cls(run.steps_per_epoch, 2, min(images, seen))


class Fakes:
    """The fakes that both stages speak of: sampled here or by an earlier run, or the user's own.

    Args:
        arguments: The model's arguments, by name.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.key: str | None = None  # of the cache that the run fills or reads
        self.paths: list[Path] = []
        self._cache: FakeCache | None = None

    @property
    def cache(self) -> FakeCache:
        """Of the sampled fakes, once they have been looked for."""
        assert self._cache is not None  # noqa: S101 - for the type checker
        return self._cache

    def find(self, run: Run) -> bool:
        """Look for the fakes; whether they are there.

        Raises:
            ValueError: If the user's own cannot be used.
        """
        if self.paths:
            return True
        folder = self.arguments["fake_dir"]
        if folder is not None:
            self.paths = find_images("fake_dir", folder, run.data_paths)
            logger.info("%d fakes of your own from %s.", len(self.paths), to_text(str(folder)))
            return True
        lengths = Lengths.of(self.arguments, run)
        self.key = self.key or run.broadcast(fingerprint(self._settings(run, lengths), run.images.paths))
        given = self.arguments["fake_cache"]
        root = run.shared_folder / "fakes" if given is None else Path(given).expanduser()
        self._cache = FakeCache(run.broadcast(root), self.key, lengths.num_fakes)
        if self._cache.complete:
            self.paths = self._cache.paths
        return bool(self.paths)

    def _settings(self, run: Run, lengths: Lengths) -> dict[str, Any]:
        """Everything but the images that the fakes depend on."""
        names = ["generator_size", "generator_channels", "fid_window"]
        if self.arguments["fid_window"] is not None:  # the encoder has a say in when to stop
            names += ["fid_every", "backbone", "pre_trained", "weights", "image_size"]
        return {
            **{name: self.arguments[name] for name in names},
            "stop_step": lengths.stop_step,
            "sampling_steps": lengths.sampling_steps,
            "num_fakes": lengths.num_fakes,
            "seed": run.seed,
            "batch_size": run.images.loader.batch_size,
            "batches": run.batches_per_epoch,
            "accumulated": run.accumulated,
            "precision": run.precision,
        }
