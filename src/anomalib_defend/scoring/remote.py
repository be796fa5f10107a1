"""Files by their address: ``s3://bucket/key``, ``gs://``, ``hdfs://``, ``file://``, whatever pyarrow knows."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.files.names import is_hidden, is_image, is_other_format, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+://[^/]*)/?(.*)", re.DOTALL)
# what pyarrow takes from the end of an S3 or GCS address; any other question mark is one of a file's name
_OPTIONS = re.compile(
    r"\?(?:(?:region|scheme|endpoint_override|allow_bucket_creation|force_virtual_addressing|tls_ca_file_path|anonymous"
    r"|project_id|retry_limit_seconds)=[^&]*(?:&|\Z))+\Z"
)


def is_address(path: str) -> bool:
    """Whether a path is the address of a file or folder of any file system."""
    return _ADDRESS.match(path) is not None


def located(where: str) -> tuple[Any, str]:
    """The file system of an address or a path, as pyarrow has it, and the path in it.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If pyarrow knows no such file system.
    """
    plain, options = _split(where)
    found = _ADDRESS.match(plain)
    if found is None:
        return _file_system("file://", "")[0], str(Path(where).absolute())
    system, base = _file_system(found[1], options)
    return system, f"{base.rstrip('/')}/{found[2]}".rstrip("/") or "/"


def _split(where: str) -> tuple[str, str]:
    """An address and its options, such as ``?region=eu-central-1``."""
    found = _OPTIONS.search(where) if is_address(where) else None
    return (where, "") if found is None else (where[: found.start()], found[0])


@functools.cache  # a connection each
def _file_system(root: str, options: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem  # noqa: PLC0415 - optional extra
    except ModuleNotFoundError as error:
        msg = f"{root} needs pyarrow: pip install 'anomalib-defend[parquet]'."
        raise ModuleNotFoundError(msg, name=error.name) from error
    try:
        return FileSystem.from_uri(f"{root}/{options}")
    except (ValueError, OSError) as error:  # pyarrow's own are these
        msg = f"{root}{options} cannot be opened ({error}): give an address that pyarrow.fs.FileSystem.from_uri takes."
        raise ValueError(msg) from error


def read_bytes(address: str) -> bytes:
    """What a file holds.

    Raises:
        OSError: If it cannot be read.
    """
    system, path = located(address)
    with system.open_input_file(path) as file:
        return file.read()


def check(address: str) -> None:
    """Look whether there is such a file or folder.

    Raises:
        FileNotFoundError: If there is none.
        ModuleNotFoundError, OSError, ValueError: If its file system cannot be asked.
    """
    system, path = located(address)  # first: it says how pyarrow is installed
    from pyarrow.fs import FileType  # noqa: PLC0415 - optional extra

    if system.get_file_info(path).type == FileType.NotFound:
        msg = f"{to_text(address)} does not exist: give the address of a folder or an image; globs are not looked up."
        raise FileNotFoundError(msg)


def list_images(address: str, other_formats: Counter[str]) -> Iterator[str]:
    """Yield the address of a file, or those of the images in a folder, then in the folders below, sorted by name.

    Of a folder below that cannot be listed its own address comes last, since that is an error of one input.

    Args:
        address: Of a file or folder.
        other_formats: Counts images in formats that anomalib does not read.
    """
    from pyarrow.fs import FileSelector, FileType  # noqa: PLC0415 - optional extra

    system, path = located(address)
    if system.get_file_info(path).type == FileType.File:
        yield address
        return
    plain, options = _split(address)
    folders, failed = [plain.rstrip("/")], []
    while folders:
        folder = folders.pop()
        try:
            infos = system.get_file_info(FileSelector(located(f"{folder}{options}")[1]))
        except OSError:
            failed.append(folder)
            continue
        found = sorted(infos, key=lambda info: info.base_name)
        below = []
        for info in found:
            if info.type == FileType.Directory and not is_hidden(info.base_name):
                below.append(f"{folder}/{info.base_name}")
            elif info.type == FileType.File and is_image(info.base_name):
                yield f"{folder}/{info.base_name}{options}"
            elif info.type == FileType.File and is_other_format(info.base_name):
                other_formats[Path(info.base_name).suffix.lower()] += 1
        folders += reversed(below)
    yield from (f"{folder}{options}" for folder in failed)
