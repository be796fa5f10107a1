"""Which images: folders, files, globs, lists in text files or on standard input, one after the other."""

from __future__ import annotations

import codecs
import functools
import glob
import itertools
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING
from unicodedata import normalize

from anomalib_defend.files.images import in_order, walk_images
from anomalib_defend.files.names import is_hidden, on_disk, to_text

from .remote import check, is_address, list_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STDIN = "-"
LIST_SUFFIX = ".txt"
_BLOCK = 1 << 16
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# UTF-16 without a mark: what no list of find has between zero bytes, an end of a line, or a dot or slash and one letter
_WIDE_PATHS = re.compile(rb"\A\0|(?:\A|\0)(?:[\r\n]|[./]\0[^\0])\0")
_PLAIN = re.compile(r"[^*?[]*")  # of a glob, up to its first wildcard


class Inputs:
    """The paths of all images, in the same order each time; neither they nor their number are kept.

    - A folder: the images in it and in the folders below, one folder after the other, each sorted by name. Hidden files
      are ignored, and images in formats that anomalib does not read are counted.
    - A file that ends with ``.txt``, or ``-``, standard input: a list, one path a line, or with a zero byte after each,
      as ``find -print0`` writes them. Relative paths are relative to the working directory.
    - A glob, with ``**`` for folders below, where no file has that name: its files, sorted by name, without hidden ones
      below the part that has no wildcards.
    - An address (``s3://bucket/folder``): a file or a folder of any file system that pyarrow knows.
    - Any other file: an image.

    Args:
        arguments: As on the command line.
        pictures: Folder that the run writes into: in folders and globs it is left out, or it would be scored, too.

    Raises:
        FileNotFoundError: If there is no such file or folder, or a glob finds no file.
        ModuleNotFoundError: If an address needs pyarrow, and it is not installed.
        ValueError: If standard input is named twice, or pyarrow knows no such file system, or
            ``pictures`` holds one of the folders.
    """

    def __init__(self, arguments: Sequence[str], pictures: Path | None = None) -> None:
        if sum(argument == STDIN for argument in arguments) > 1:
            msg = "Standard input (-) is named twice: it can be read once."
            raise ValueError(msg)
        self.arguments = [_found(argument) for argument in arguments]
        self.other_formats: Counter[str] = Counter()
        self._pictures = None if pictures is None else os.path.realpath(pictures)
        for argument in self.arguments:
            if os.path.isdir(argument) and self._is_picture(f"{argument}/"):  # noqa: PTH112 - pathlib's may raise
                msg = f"The pictures would go into {to_text(argument)}, which is scored: give --maps another folder."
                raise ValueError(msg)

    @property
    def countable(self) -> bool:
        """Whether the images can be listed twice."""
        return STDIN not in self.arguments

    @property
    def has_list(self) -> bool:
        """Whether there is a list, whose relative paths depend on the working directory."""
        return any(path == STDIN or (_is_list(path) and os.path.isfile(path)) for path in self.arguments)  # noqa: PTH113

    def no_image(self) -> FileNotFoundError:
        """The error of a run without images; call it once all have been listed."""
        others = sum(self.other_formats.values())
        more = f", but there are {others} in formats that anomalib does not read" if others else ""
        where = to_text(", ".join(self.arguments))
        return FileNotFoundError(f"There is no image in {where}{more}: give folders or lists that hold some.")

    def __iter__(self) -> Iterator[str]:
        """Yield paths; of a folder that cannot be read its own, since that is an error of one input."""
        self.other_formats.clear()
        for argument in self.arguments:
            if argument == STDIN:
                yield from read_list(sys.stdin.buffer, "standard input")
            elif is_address(argument):
                yield from list_images(argument, self.other_formats)
            elif Path(argument).is_dir():
                yield from itertools.filterfalse(self._is_picture, self._folder(argument))
            elif not Path(argument).exists():
                files = set(filter(os.path.isfile, _globbed(argument)))
                yield from itertools.filterfalse(self._is_picture, sorted(files, key=in_order))
            elif _is_list(argument):
                with Path(argument).open("rb") as file:
                    yield from read_list(file, argument)
            else:
                yield argument

    def _folder(self, folder: str) -> Iterator[str]:
        errors: list[OSError] = []
        for images, other_formats in walk_images(Path(folder), errors.append):
            self.other_formats.update(Path(path).suffix.lower() for path in other_formats)
            yield from images
        yield from (str(error.filename) for error in errors)

    def _is_picture(self, path: str) -> bool:
        return self._pictures is not None and _is_below(os.path.dirname(path), self._pictures)  # noqa: PTH120 - text


@functools.lru_cache(maxsize=64)  # images of one folder come one after the other
def _is_below(folder: str, other: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(other)


def read_list(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the paths of a list, as Python writes names that are no UTF-8; empty lines are left out.

    Args:
        file: Buffered.
        name: For errors.

    Raises:
        ValueError: If it is UTF-16, or a zero byte comes after lines that ended without.
    """
    block = file.peek(_BLOCK)  # type: ignore[attr-defined] # what is there already, without waiting for more
    if block.startswith(_WIDE) or _WIDE_PATHS.search(block):
        msg = f"{to_text(name)} is UTF-16: save it as UTF-8, for example by iconv -f UTF-16 -t UTF-8."
        raise ValueError(msg)
    if block.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    if b"\0" in block:
        yield from map(os.fsdecode, _records(file))
        return
    for line in file:
        path = line.rstrip(b"\r\n")
        if b"\0" in path:
            msg = f"{to_text(name)} has zero bytes after some names alone: end all of them so, as find -print0 does."
            raise ValueError(msg)
        if path:
            yield os.fsdecode(path)


def _records(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := file.read1(_BLOCK):  # type: ignore[attr-defined]
        *records, rest = (rest + block).split(b"\0")
        yield from filter(None, records)
    if rest:
        yield rest


def _globbed(pattern: str) -> Iterator[str]:
    """What a glob finds, in whichever Unicode form it is written, but nothing hidden below its plain beginning."""
    for form in dict.fromkeys([pattern, normalize("NFC", pattern), normalize("NFD", pattern)]):
        root = os.path.dirname(_PLAIN.match(form)[0])  # type: ignore[index] # noqa: PTH120 - it matches always
        found = glob.iglob(form, recursive=True)  # noqa: PTH207 - pathlib's does not keep the way it is written
        yield from (path for path in found if not is_hidden(path.removeprefix(root)))


def _is_list(argument: str) -> bool:
    return argument.lower().endswith(LIST_SUFFIX)


def _check_files(pattern: str) -> None:
    if not any(map(os.path.isfile, _globbed(pattern))):
        msg = (
            f"{to_text(pattern)} finds folders alone, and a glob stands for files: leave out the quotes, so that your "
            f"shell names the folders, or write '{to_text(pattern)}/**/*.jpg'."
        )
        raise FileNotFoundError(msg)


def _found(argument: str) -> str:
    path = Path(argument)
    if is_address(argument):
        check(argument)
        return argument
    if argument == STDIN or path.exists():
        return argument
    spelled = on_disk(path)
    if spelled.exists():
        return str(spelled)
    if glob.has_magic(argument) and next(_globbed(argument), None):
        _check_files(argument)
        return argument
    what = "finds no file that is not hidden" if glob.has_magic(argument) else "does not exist"
    msg = (
        f"{to_text(argument)} {what} (working directory {to_text(str(Path.cwd()))}): give folders, image files, globs, "
        f"lists of paths ({LIST_SUFFIX}), or - for standard input."
    )
    raise FileNotFoundError(msg)
