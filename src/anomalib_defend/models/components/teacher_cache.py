"""What a frozen teacher makes of each training image, computed once and read in every epoch of the distillation.

One memory-mapped file holds a row of fixed size for each image; the processes of a machine share it. In RAM the file
loses its name at once, so that it ends with its processes, however they end. On disk it gets its name when it is
complete, so that nothing an interrupted run leaves is mistaken for features, and a resumed run takes complete ones up.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from anomalib_defend.files.equal import add_states
from anomalib_defend.files.names import to_text
from anomalib_defend.nn.distance import TeacherOutput, TeacherShape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)

CachePlace = Literal["auto", "ram", "disk", "off"]

RAM = Path("/dev/shm")  # noqa: S108 - files there are in memory; ours has a random name, for a moment
AUTO_SHARE = {"ram": 1 / 4, "disk": 1 / 2}  # of what is free: the most that "auto" takes
FORMAT = "1"  # of the file; part of the key


@dataclass(frozen=True)
class CacheLayout:
    """Size of the table: of each image the T' [layers, patches, channels] and, to guide masks, attention [patches]."""

    images: int
    of_image: TeacherShape
    dtype: torch.dtype

    @property
    def attention_bytes(self) -> int:
        """Bytes of all attentions, which are float32 and come first in the file."""
        return 4 * self.images * self.of_image.patches if self.of_image.attention else 0

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        shape = self.of_image
        values = self.images * shape.layers * shape.patches * shape.channels
        return self.attention_bytes + values * self.dtype.itemsize

    def __str__(self) -> str:
        """E.g. ``490 images x 76.0 kB (float16) = 37.3 MB``."""
        row = size(self.bytes / max(1, self.images))
        return f"{self.images} images x {row} ({str(self.dtype).removeprefix('torch.')}) = {size(self.bytes)}"


class TeacherCache:
    """The table, mapped into this process.

    Args:
        file: A file of ``layout.bytes`` bytes, as `reserve` makes it. Its name may change or vanish afterwards.
        paths: The images' files, in the order of the rows.
        layout: Size of the table.

    Raises:
        ValueError: If the file has another size.
    """

    def __init__(self, file: Path, paths: Sequence[str], layout: CacheLayout) -> None:
        self.layout = layout
        self._row = {path: row for row, path in enumerate(paths)}
        with file.open("r+b") as opened:
            if os.fstat(opened.fileno()).st_size != layout.bytes:
                msg = f"{file} does not hold a cache of {layout}: remove it."
                raise ValueError(msg)
            self._map = mmap.mmap(opened.fileno(), layout.bytes)
        images, shape = layout.images, layout.of_image
        features = torch.frombuffer(self._map, dtype=layout.dtype, offset=layout.attention_bytes)
        self._features = features.reshape(images, shape.layers, shape.patches, shape.channels)
        self._attention = None
        if shape.attention:
            attention = torch.frombuffer(self._map, dtype=torch.float32, count=images * shape.patches)
            self._attention = attention.reshape(images, shape.patches)

    def write(self, start: int, output: TeacherOutput) -> None:
        """Store what the teacher made of the images ``start``, ``start + 1`` ..., rounded to the table's type."""
        stop = start + len(output.layers[0])
        for layer, tokens in enumerate(output.layers):
            self._features[start:stop, layer].copy_(tokens)
        if self._attention is not None and output.attention is not None:
            self._attention[start:stop].copy_(output.attention)

    def read(self, paths: Iterable[str], device: torch.device) -> TeacherOutput:
        """What was stored for these images, on ``device``, features in the table's type.

        No step waits for the copy to an accelerator.

        Raises:
            ValueError: If an image is not one of those that the cache was made for.
        """
        try:
            rows = torch.tensor([self._row[path] for path in paths])
        except KeyError as error:
            msg = f"{to_text(error.args[0])} was no training image when the distillation began: pass teacher_cache=off."
            raise ValueError(msg) from error
        attention = None if self._attention is None else _rows_to(device, self._attention, rows)
        return TeacherOutput(list(_rows_to(device, self._features, rows).unbind(dim=1)), attention)

    def flush(self) -> None:
        """Wait until everything that any process has written is on the disk."""
        self._map.flush()


def _rows_to(device: torch.device, table: Tensor, rows: Tensor) -> Tensor:
    pinned = device.type == "cuda"  # torch reuses such memory when its copy is done
    picked = torch.empty((len(rows), *table.shape[1:]), dtype=table.dtype, pin_memory=pinned)
    return torch.index_select(table, 0, rows, out=picked).to(device, non_blocking=pinned)


# --------------------------------------------------------------------------------------------------- place and file


def choose_place(place: CachePlace, needed: int, folder: Path) -> CachePlace:
    """Where a cache of ``needed`` bytes goes.

    Args:
        place: "ram", "disk" or "off", or "auto": RAM if it takes at most a quarter of what is free there, else the disk
            if it takes at most half, else nowhere.
        needed: Bytes.
        folder: Where it would be on disk; need not exist.

    Returns:
        "ram", "disk" or "off".

    Raises:
        ValueError: If it does not fit where it is wanted.
    """
    free = {"ram": free_ram(), "disk": free_disk(folder)}
    if place == "auto":
        places: tuple[Literal["ram", "disk"], ...] = ("ram", "disk")
        return next((name for name in places if needed <= AUTO_SHARE[name] * free[name]), "off")
    if place != "off" and needed > free[place]:
        where = {"ram": f"in memory ({RAM})", "disk": f"on the disk of {folder}"}[place]
        msg = (
            f"teacher_cache={place!r} takes {size(needed)}, of which {size(free[place])} are free {where}. Make room, "
            'or pass teacher_cache="auto" (a place that fits, else none) or "off" (the teacher runs in every epoch).'
        )
        raise ValueError(msg)
    return place


def free_ram() -> int:
    """Bytes that files in RAM may take: what they may have, the machine has left, and this process's group may use."""
    if not RAM.is_dir():
        return 0
    limits = [shutil.disk_usage(RAM).free]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    for folder, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such group, or "max"
            limits.append(int(Path(folder, most).read_text()) - int(Path(folder, used).read_text()))
    return max(0, min(limits))


def free_disk(folder: Path) -> int:
    """Free bytes where ``folder`` is, or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def reserve(file: Path, needed: int) -> None:
    """Make a file of ``needed`` bytes that are there for certain: a full disk shows now, not when a page is written.

    A file of that name stays as it is: an interrupted run with the same key has left it, or another is writing the
    same rows to it.

    Raises:
        OSError: If there is no room.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, needed)
        else:
            os.truncate(handle, needed)
    except OSError as error:
        file.unlink()
        msg = f"The teacher's cache of {size(needed)} cannot be made as {file} ({error}): pass teacher_cache=off."
        raise OSError(msg) from error
    finally:
        os.close(handle)


def fingerprint(teacher: Mapping[str, Tensor], paths: Iterable[str], *how: object) -> str:
    """Key of a cache: whatever changes the features changes it.

    Args:
        teacher: The teacher's weights.
        paths: The images' files: name, size and time of the last change count.
        how: What else the features depend on (preprocessing, layout, precision ...), as what it prints.
    """
    digest = hashlib.sha256(repr((FORMAT, torch.__version__, [str(item) for item in how])).encode())
    for name, weights in teacher.items():
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    add_states(digest, paths)
    return digest.hexdigest()[:32]


def size(count: float) -> str:
    """E.g. ``37.3 MB``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'bytes' else 1}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
