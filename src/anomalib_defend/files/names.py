r"""The one rule for names: which files are data, which names are equal, and how a name is written into text.

- **Hidden** are names that begin with a dot (``._0.jpg`` of a Mac, ``.DS_Store``) and what operating systems and file
  servers put beside one's files: ``__MACOSX``, ``@eaDir``, ``Thumbs.db`` ... They are never data, wherever they lie
  below a data set's root, and whoever lists them.
- **Equal** are names that differ in Unicode's form alone: a Mac decomposes ``ü`` into two characters (NFD), keyboards
  write one (NFC). Where there is no file of the name asked for, one of another form is taken.
- **Written** is a name as UTF-8 without control characters: bytes that are not UTF-8, which Python keeps as lone
  surrogates, become ``\xNN``. ``to_text`` makes it so and ``from_text`` undoes it.
"""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

from torchvision.datasets.folder import IMG_EXTENSIONS

# Of macOS; of Windows; of file servers by Synology, QNAP and NetApp; of ext4 and trash folders
_SYSTEM_NAMES = (
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "@synoresource",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
    "~snapshot",
    "lost+found",
)
_HIDDEN = re.compile(
    rf"(?:^|[/{re.escape(os.sep)}])"
    rf"(?:\.(?!\.?(?:[/{re.escape(os.sep)}]|$))"  # a dot, but neither '.' nor '..'
    rf"|(?:{'|'.join(map(re.escape, _SYSTEM_NAMES))})(?:[/{re.escape(os.sep)}]|$))",
    re.IGNORECASE,
)
# Photographs that anomalib does not read: formats of Pillow, of telephones and of cameras
_OTHER_FORMATS = (
    *(".apng", ".avif", ".avifs", ".dib", ".exr", ".gif", ".heic", ".heif", ".hif", ".icb", ".ico", ".j2c", ".j2k"),
    *(".jfi", ".jfif", ".jif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl", ".pbm", ".pcx", ".pfm", ".pnm", ".psd", ".qoi"),
    *(".mpo", ".sgi", ".svg", ".tga", ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq"),
    *(".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf"),
    *(".srw", ".x3f"),
)
OTHER_FORMATS = tuple(suffix for suffix in _OTHER_FORMATS if suffix not in IMG_EXTENSIONS)

_TO_WRITE = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})")
_WRITTEN = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")


def is_hidden(name: str) -> bool:
    """Return whether a file's name, or a part of a path below a data set's root, is hidden."""
    return _HIDDEN.search(name) is not None


def is_image(name: str) -> bool:
    """Return whether a file name is one of an image that anomalib reads."""
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def is_other_format(name: str) -> bool:
    """Return whether a file name is one of an image in a format that anomalib does not read."""
    return name.lower().endswith(OTHER_FORMATS) and not is_hidden(name)


def composed(name: str) -> str:
    """Return the name in Unicode's composed form (NFC)."""
    return name if name.isascii() else normalize("NFC", name)


@lru_cache(maxsize=4096)  # category names come again with every image
def category_name(name: str) -> str:
    """Return a category's name as it is compared, shown and typed: composed, and writable as UTF-8."""
    return to_text(composed(name))


def to_text(name: str) -> str:
    r"""Return a file's name or path as text that every UTF-8 file, terminal and table takes.

    What cannot be written becomes an escape: a byte that is not UTF-8 and a control character ``\xNN``, any other lone
    surrogate and line separator ``\uNNNN``. A backslash that stands before such letters already becomes ``\x5c``, so
    different names stay different, and ``from_text`` gives the name back. Other names stay as they are.
    """
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return _TO_WRITE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's place for the byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def from_text(text: str) -> str:
    """Return the name that ``to_text`` has written, with which the file can be opened."""
    return _WRITTEN.sub(_unescape, text)


def _unescape(match: re.Match[str]) -> str:
    if match[2]:
        return chr(int(match[2], 16))
    code = int(match[1], 16)
    return chr(code if code < 0x80 else 0xDC00 + code)


def shortened(names: Iterable[str], number: int = 3) -> str:
    """Return the first names, comma-separated, with dots for the others."""
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


def shortened_paths(paths: Iterable[str], number: int = 3) -> str:
    """Return the first paths, as text that can be written everywhere."""
    return shortened(map(to_text, paths), number)


class Spellings:
    """Finds files under names in another Unicode form than theirs; a folder is listed once."""

    def __init__(self) -> None:
        self._listings: dict[str, dict[str, str | None]] = {}

    def on_disk(self, path: str) -> str:
        """Return the path as it is spelled on disk; unchanged if it exists, or if nothing there is equal to it."""
        if not path or os.path.lexists(path):
            return path
        parent, name = os.path.split(path)
        if parent == path or not name:
            return path
        parent = self.on_disk(parent)
        found = self._listing(parent).get(composed(name))
        return os.path.join(parent, found) if found else path  # noqa: PTH118 - paths are strings here

    def _listing(self, folder: str) -> dict[str, str | None]:
        """Map composed names to the names in a folder; ``None`` where there are two."""
        if folder not in self._listings:
            names: dict[str, str | None] = {}
            try:
                for name in os.listdir(folder or "."):  # noqa: PTH208
                    names[composed(name)] = name if composed(name) not in names else None
            except (OSError, ValueError):
                names = {}
            self._listings[folder] = names
        return self._listings[folder]


def on_disk(path: Path) -> Path:
    """Return the path as it is spelled on disk, see ``Spellings``."""
    return Path(Spellings().on_disk(str(path)))
