"""Fetching and unpacking official archives: checksummed, resumed where it was interrupted, entirely or not at all."""

import logging
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.progress import wrap_file
from torchvision.datasets.utils import check_integrity

logger = logging.getLogger(__name__)

_TIMEOUT = 60  # seconds without a byte
_TAR_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.10.0-11


class Source(NamedTuple):
    """An official file: where it is published, and its MD5 checksum."""

    url: str
    md5: str

    @property
    def filename(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A folder inside of ``root`` in which results are made, to be renamed into place; removed at the end."""
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".incomplete-", dir=root) as folder:
        yield Path(folder)


def fetch(source: Source, folder: Path) -> Path:
    """Download a file into ``folder``, unless it is there already, and return its path.

    What an interrupted download has got stays in ``<name>.part``, where the next one goes on.

    Raises:
        RuntimeError: If the file cannot be fetched or its checksum is wrong; nothing stays under its name.
    """
    path = folder / source.filename
    if check_integrity(path, source.md5):
        return path
    part = path.with_name(f"{path.name}.part")
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("Downloading %s into %s.", source.url, folder)
    try:
        _download(source.url, part)
    except OSError as error:
        msg = (
            f"Download of {source.url} failed ({error}). Try again, it goes on where it stopped, or put the file into "
            f"{folder}."
        )
        raise RuntimeError(msg) from error
    if not check_integrity(part, source.md5):
        part.unlink()
        msg = f"{source.url} was downloaded but its MD5 is not {source.md5}. Try again, or put the file into {folder}."
        raise RuntimeError(msg)
    return part.replace(path)


def _download(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks of the file."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "anomalib-defend", "Range": f"bytes={size}-"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - official addresses only
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after the bytes that are there: the checksum decides
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        length = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, total=length, description=Path(url).name) as reader:
            shutil.copyfileobj(reader, file)
    if length and part.stat().st_size < length:
        msg = "the connection was closed too early"
        raise ConnectionError(msg)


def fetch_folder(source: Source, root: Path, *names: str) -> None:
    """Put folders, or files, that an official archive holds at ``root/name``, entirely or not at all.

    The archive is taken from ``root`` if it lies there; a downloaded one is removed afterwards.

    Raises:
        FileExistsError: If there is something else at that place.
        RuntimeError: If the archive cannot be fetched, verified or safely unpacked.
    """
    for target in (root / name for name in names):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            msg = f"{target} exists but is not complete. Move it away to download it anew."
            raise FileExistsError(msg)
    given = (root / source.filename).exists()
    archive = fetch(source, root)
    with scratch_folder(root) as scratch:
        unpack(archive, scratch)
        for name in names:
            if not (scratch / name).exists():
                msg = f"{archive} holds no {name}: it is another file than {source.url}."
                raise RuntimeError(msg)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).rename(root / name)
    if not given:
        archive.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar or .zip file without links and members outside of it into an existing folder.

    Raises:
        RuntimeError: If it cannot be unpacked, or is not safe: then nothing is written.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _check_members((info.filename, stat.S_ISLNK(info.external_attr >> 16)) for info in file.infolist())
                file.extractall(folder)  # noqa: S202 - checked
        else:
            with tarfile.open(archive) as tar:
                members = tar.getmembers()
                _check_members((member.name, not (member.isfile() or member.isdir())) for member in members)
                tar.extractall(folder, members, **_TAR_FILTER)  # noqa: S202 - checked
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
        msg = f"{archive} cannot be unpacked ({error}). Remove it to download it again."
        raise RuntimeError(msg) from error


def _check_members(members: Iterable[tuple[str, bool]]) -> None:
    """Refuse members that would be written elsewhere, given by name and whether each is a link or a device."""
    for name, is_link in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if is_link:
            msg = f"it is not safe: {name} is a link or a device"
            raise ValueError(msg)
        if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
            msg = f"it is not safe: {name} lies outside of the folder"
            raise ValueError(msg)
