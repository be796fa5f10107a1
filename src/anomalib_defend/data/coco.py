"""COCO 2014 and 2017, and data sets in their layout."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from anomalib_defend.data.download import Source, fetch_folder
from anomalib_defend.data.protocol import AnnotatedImage, Annotations, Setting
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.data.text_files import read_utf8
from anomalib_defend.files.names import category_name, composed, is_hidden, shortened, to_text

logger = logging.getLogger(__name__)

Year = Literal[2014, 2017]

_URL = "http://images.cocodataset.org"  # over https its certificate is another host's; the checksums make it safe
_MD5 = {
    "annotations/annotations_trainval2014.zip": "0a379cfc70b0e71301e0f377548639bd",
    "annotations/annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
    "zips/train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88",
    "zips/train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
    "zips/val2014.zip": "a3d79f5ed8d289b7a7554ce06a5782b3",
    "zips/val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
}
_SPLITS: dict[str, Literal["train", "test"]] = {"train": "train", "val": "test"}


class SemanticCOCO(SemanticDataModule):
    """COCO: an image belongs to every category of which it has an annotation, crowds included.

    The images of ``train<year>`` are for training and those of ``val<year>`` for test, where an image without
    annotations is novel. Outlines and boxes are not used.

    Args:
        root: Folder with ``annotations/instances_{train,val}<year>.json`` and the images in ``{train,val}<year>`` or
            ``images/{train,val}<year>``; or the folder that holds it as ``coco``.
        category: One category or several, by name (``cell phone``) or by COCO's number (1 to 90, with gaps).
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        year: 2014 or 2017: the same images, divided otherwise into training and validation.
        download: Download what is missing of the official archives (20 GB), which needs twice the space meanwhile.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Raises:
        ValueError: If an argument is outside of what is listed above.

    Source:
        https://cocodataset.org/#download
    """

    def __init__(
        self,
        root: Path | str,
        category: list[str | int] | str | int,
        setting: Setting = "uni_class",
        *,
        year: Year = 2017,
        download: bool = False,
        **kwargs: Any,  # declared in the base class, where jsonargparse finds them
    ) -> None:
        super().__init__(root=root, category=category, setting=setting, **kwargs)
        if year not in get_args(Year):
            msg = f"year must be one of {', '.join(map(str, get_args(Year)))}, got {year!r}."
            raise ValueError(msg)
        self.year = year
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing if asked to.

        Raises:
            FileNotFoundError: If something is missing and ``download`` is false.
        """
        super().prepare_data()
        if self.download:
            base, _, missing = self._find()
            for archive in sorted(set(missing.values())):
                names = [name for name in missing if missing[name] == archive]
                fetch_folder(Source(f"{_URL}/{archive}", _MD5[archive]), base, *names)
        self._parts()

    def read_annotations(self) -> Annotations:
        """Read the two instances files.

        Raises:
            FileNotFoundError: If an instances file or an image folder is missing.
            ValueError: If a file is malformed, or the two number their categories differently.
        """
        parts = self._parts()
        ids: dict[int | str, str] = {}
        names: set[str] = set()
        images: list[AnnotatedImage] = []
        for name, split in _SPLITS.items():
            path, folder = parts[f"annotations/instances_{name}{self.year}.json"], parts[f"{name}{self.year}"]
            numbered, labels = read_instances(path)
            names.update(map(category_name, numbered.values()))
            typed = {number: category_name(name) for number, name in _as_typed(numbered).items()}
            renamed = [str(number) for number in typed.keys() & ids.keys() if typed[number] != ids[number]]
            if renamed:
                msg = f"{path} has other names for categories {shortened(sorted(renamed))} than the file for training."
                raise ValueError(msg)
            ids |= typed
            images += [AnnotatedImage(str(folder / file), frozenset(held), split) for file, held in labels.items()]
            logger.info("COCO: %s, images in %s.", to_text(str(path)), to_text(str(folder)))
        return Annotations(names, images, ids)

    def _parts(self) -> dict[str, Path]:
        """Return where the files and folders of ``_archives`` lie, or refuse a data set that lacks one."""
        base, parts, missing = self._find()
        if missing:
            lacking = ", ".join(f"{base / name} (in {_URL}/{archive})" for name, archive in missing.items())
            found = f"lacks {lacking}" if self.root.is_dir() else f"is no folder; it needs {lacking}"
            msg = (
                f"No COCO data: root={str(self.root)!r} {found}. Pass download=True, or unpack the archives in {base}; "
                "data of your own in COCO's layout needs the same names."
            )
            raise FileNotFoundError(msg)
        return parts

    def _find(self) -> tuple[Path, dict[str, Path], dict[str, str]]:
        """Return the folder for the data set, what of it lies where, and the archives of what is missing."""
        archives = _archives(self.year)
        for base in (self.root / "coco", self.root):
            places = [(name, path) for name in archives for path in (base / "images" / name, base / name)]
            found = {name: path for name, path in places if path.is_file() or _has_files(path)}
            if found:
                break
        return base, found, {name: archive for name, archive in archives.items() if name not in found}


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and not all(is_hidden(path.name) for path in folder.iterdir())


def _archives(year: int) -> dict[str, str]:
    """Return the files and folders that are used, each with the official archive that holds it."""
    annotations = f"annotations/annotations_trainval{year}.zip"
    files = {f"annotations/instances_{name}{year}.json": annotations for name in _SPLITS}
    return files | {f"{name}{year}": f"zips/{name}{year}.zip" for name in _SPLITS}


_Id = int | float | str  # pycocotools takes whatever a dictionary takes


class _Image(Struct):
    id: _Id
    file_name: str


class _Annotation(Struct):
    image_id: _Id
    category_id: _Id


class _Category(Struct):
    id: _Id
    name: str | int | float


class _Instances(Struct):
    """What is used of an instances file; msgspec skips the outlines, which are nearly all of it, unread."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_ADVICE = "Correct it where it was exported; if it is COCO's own, replace it by that of the official archive."


def _decode(path: Path) -> _Instances:
    """Read what pycocotools reads, which is what Python's ``json`` does: NaN and Infinity too."""
    try:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Instances)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # standard JSON it is not
            return msgspec.convert(json.loads(read_utf8(path)), _Instances)
    except json.JSONDecodeError as error:
        problem = f"{error.msg}, line {error.lineno}, column {error.colno}"
        msg = f"{path} is not a COCO instances file: it is no JSON, or truncated ({problem}). {_ADVICE}"
        raise ValueError(msg) from error
    except msgspec.ValidationError as error:
        msg = f"{path} is not a COCO instances file: {error}. {_ADVICE}"
        raise ValueError(msg) from error
    except RecursionError as error:
        msg = f"{path} is not a COCO instances file: its values are nested too deeply. {_ADVICE}"
        raise ValueError(msg) from error


def _names_by_id(entries: Iterable[tuple[_Id, str]], field: str, path: Path) -> dict[_Id, str]:
    """Return the name of each id; one that comes twice has the same name."""
    names: dict[_Id, str] = {}
    for index, (number, name) in enumerate(entries):
        if composed(names.setdefault(number, name)) != composed(name):
            msg = (
                f"{path} has several names for one id, at $.{field}[{index}]: {number!r} is {to_text(names[number])!r} "
                f"and {to_text(name)!r}. {_ADVICE}"
            )
            raise ValueError(msg)
    return names


def read_instances(path: Path) -> tuple[dict[_Id, str], dict[str, set[str]]]:
    """Return the names of the categories by id, and those of each image file.

    Raises:
        ValueError: If the file is malformed, or its ids do not fit together; the message has the place.
    """
    content = _decode(path)
    names = _names_by_id(((category.id, str(category.name)) for category in content.categories), "categories", path)
    files = _names_by_id(((image.id, image.file_name) for image in content.images), "images", path)
    labels: dict[str, set[str]] = {file: set() for file in files.values()}
    unknown: dict[str, str] = {}  # what it is: where it is
    for index, annotation in enumerate(content.annotations):
        if annotation.image_id not in files:
            unknown.setdefault(f"image {annotation.image_id!r}", f"$.annotations[{index}]")
        elif annotation.category_id not in names:
            unknown.setdefault(f"category {annotation.category_id!r}", f"$.annotations[{index}]")
        else:
            labels[files[annotation.image_id]].add(names[annotation.category_id])
    if unknown:
        wrong = shortened(f"{what} ({place})" for what, place in unknown.items())
        hint = " Ids as text and ids as numbers are different." if any("'" in what for what in unknown) else ""
        msg = f"{path} has annotations of unknown ids: {wrong}.{hint} {_ADVICE}"
        raise ValueError(msg)
    return names, labels


def _as_typed(names: Mapping[_Id, str]) -> dict[int | str, str]:
    """Return the names of categories by the number that is typed, where one is meant: ids 1 and "1" may be two."""
    meant: dict[int | str, set[str]] = {}
    for number, name in names.items():
        meant.setdefault(_number(number), set()).add(name)
    return {number: min(found) for number, found in meant.items() if len(found) == 1}


def _number(number: _Id) -> int | str:
    """Return a category's id as it is typed: 18, also where the file has 18.0 or "18"."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    text = str(number)
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text
