"""Rows on disk while a run goes on: killed at any moment, it goes on from them, and no image is lost or there twice.

``FILE.part`` holds the rows so far, one a line, in the order of the images; ``FILE.part.json`` says what run they are
of. A line without its end is what a kill has left: its image is scored again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from anomalib_defend.decision.table import COLUMNS, MARKS, UPPER_BOUND, Row, cells, to_row
from anomalib_defend.files.names import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

_END = b"\r\n"
WINDOWS = os.name == "nt"


class Entry(NamedTuple):
    """A row of the table."""

    row: Row
    upper_bound: bool = False
    """Whether the score is an upper bound, and the p-value a lower one."""


class Journal:
    """The rows so far of one run; one process at a time has it open.

    Args:
        out: The table that it will become.
        settings: Plain data that the rows depend on; a run with others does not go on from them.
        bounds: Whether there is a column ``upper_bound``.

    Raises:
        ValueError: If another run was begun there, in settings or images.
        BlockingIOError: If another process is writing it.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, bounds: bool = False) -> None:
        self.out = out
        self.path, self.settings_path = _paths(out)
        self.columns = [*COLUMNS, *([UPPER_BOUND] if bounds else [])]
        self._check(settings)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.settings_path, settings)
        self._file = self.path.open("ab+")
        _lock(self._file, self.path)

    def _check(self, settings: dict[str, Any]) -> None:
        if not self.path.exists():
            return
        where = to_text(str(self.path))
        try:
            begun = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{where} is there, but not what it was begun with ({error}): remove it, or give another --out."
            raise ValueError(msg) from error
        refuse_other(begun, settings, f"{where} was begun", "remove it to begin anew")

    def __enter__(self) -> Journal:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def resume(self, paths: Iterator[str]) -> Iterator[Entry]:
        """Yield what is there already, and take as many images from ``paths``; what follows a whole row is cut off.

        Raises:
            ValueError: If the images are others than those of the rows.
        """
        self._file.seek(0)
        if self._file.readline() != self._line(self.columns):  # not even the header is whole
            self._file.truncate(0)
            self._file.write(self._line(self.columns))
            self._file.flush()
            return
        end = self._file.tell()
        for number, line in enumerate(self._file, 2):
            entry = self._entry(line)
            if entry is None:
                break
            path = next(paths, None)
            if path is None or _written(path) != _written(entry.row.path):
                now = "no more image follows" if path is None else f"{to_text(path)} comes next"
                msg = (
                    f"{to_text(str(self.path))} was begun with other images: line {number} is of "
                    f"{to_text(entry.row.path)}, but now {now}. Give the images as they were, remove that file to "
                    "begin anew, or give another --out."
                )
                raise ValueError(msg)
            end += len(line)
            yield entry
        self._file.truncate(end)

    def append(self, entries: Iterable[Entry]) -> None:
        """Add rows, all at once."""
        lines = []
        for entry in entries:
            bound = [MARKS[entry.upper_bound]] if UPPER_BOUND in self.columns else []
            lines.append(self._line([*cells(entry.row), *bound]))
        self._file.write(b"".join(lines))
        self._file.flush()

    def read(self) -> Iterator[dict[str, str]]:
        """All rows, by column; whole ones alone are there."""
        with self.path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def remove(self) -> None:
        """Remove what is left of it, the settings last."""
        self._file.close()
        remove_journal(self.out)

    def become(self, out: Path) -> None:
        """Become the table."""
        if WINDOWS:  # renames no open file; elsewhere the file stays locked until it is the table
            self._file.close()
        self.path.replace(out)

    def _line(self, values: Iterable[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerow(values)
        return text.getvalue().encode("utf-8", "backslashreplace")

    def _entry(self, line: bytes) -> Entry | None:
        """The row of a line; None if it is not a whole one."""
        if not line.endswith(_END):
            return None
        try:
            (values,) = csv.reader([line.decode("utf-8")])
            content = dict(zip(self.columns, values, strict=True))
            row = to_row(content)
            row.path = from_text(row.path)
            return Entry(row, row.upper_bound)
        except (ValueError, KeyError, csv.Error):
            return None


def remove_journal(out: Path) -> None:
    """Remove what a table's run has left, the settings last."""
    for path in _paths(out):
        path.unlink(missing_ok=True)


def _paths(out: Path) -> tuple[Path, Path]:
    """Rows and settings."""
    return out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")


def _written(path: str) -> str:
    """A path as the table has it, where one that a spreadsheet would run is spelled in another way."""
    return cells(Row(path))[0]


def refuse_other(begun: dict[str, Any], settings: dict[str, Any], what: str, way_out: str) -> None:
    """Compare settings with those that something was begun with.

    Raises:
        ValueError: If they differ; names them.
    """
    other = [name for name in {**begun, **settings} if begun.get(name) != settings.get(name)]
    if other:
        told = ", ".join(f"{name}: {begun.get(name)!r}, now {settings.get(name)!r}" for name in other)
        msg = to_text(f"{what} with other settings ({told}). Give the same, {way_out}, or give another --out.")
        raise ValueError(msg)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, complete or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    text = json.dumps(content, indent=1)
    draft.write_text(f"{text}\n", encoding="utf-8")
    draft.replace(path)


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows, where two runs at once are the user's own affair
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        msg = f"{to_text(str(path))} is written by another process: wait for it, or give another --out."
        raise BlockingIOError(msg) from error
    except OSError:  # a file system without locks: as on Windows
        return
