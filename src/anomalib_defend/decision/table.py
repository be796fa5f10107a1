"""One table of results for training, test, prediction and batch scoring: what a run does not know is empty."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from anomalib_defend.files.names import to_text

from .conformal import select

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import IO

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the image's file, ends excluded."""
LABELS = {None: "", False: "normal", True: "novel"}
SELECTED = "selected"
MARKS = {False: "no", True: "yes"}

_RUNS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula


@dataclass
class Row:
    """What is known of one image."""

    path: str
    score: float | None = None
    """1/2 is the threshold; higher is more novel."""
    label: bool | None = None
    """Whether it is called novel."""
    raw_score: float | None = None
    """Before scaling."""
    p_value: float | None = None
    """Share of normal images at least as novel."""
    threshold: float | None = None
    """Raw score above which images are called novel."""
    true_label: bool | None = None
    categories: str = ""
    """Names of the categories of which it holds an object, joined by ``data.protocol.SEPARATOR``."""
    box: Box | None = None
    """Where the normal object was found, for models that know it."""
    picture: str = ""
    """File, relative to the table's folder."""
    error: str = ""
    """Why there is no score."""
    upper_bound: bool = False
    """The score is at most this, and the p-value at least: the first view alone was looked at."""


UPPER_BOUND = "upper_bound"
COLUMNS = tuple(item.name for item in fields(Row) if item.name != UPPER_BOUND)
"""Of all tables; ``UPPER_BOUND`` is a column of those that have such rows."""


def cells(row: Row) -> list[str]:
    """The row as text, in the order of ``COLUMNS``, so that no spreadsheet runs it.

    Numbers have the nine digits that tell all float32 apart.
    """
    result = []
    for name in COLUMNS:
        value = getattr(row, name)
        if name in {"label", "true_label"}:
            result.append(LABELS[value])
        elif name in {"path", "picture"}:
            text = to_text(value)
            result.append(f"./{text}" if text.startswith(_RUNS) else text)  # the same file
        elif name == "box":
            result.append("" if value is None else box_text(value))
        elif isinstance(value, str):
            result.append(f"'{value}" if value.startswith(_RUNS) else value)
        else:
            result.append("" if value is None else f"{value:.9g}")
    return result


def rows_of(batch: Any, threshold: float | None, categories: Sequence[str] | None = None) -> list[Row]:
    """What a post-processed batch says of its images.

    Args:
        batch: anomalib's, with ``raw_score``, ``p_value``, ``picture`` and ``box`` where they are known.
        threshold: Raw score above which images are called novel.
        categories: Of each image, where they are known.
    """
    scores = batch.pred_score.flatten().tolist()
    boxes = getattr(batch, "box", None)  # of models that know it
    columns: dict[str, list[Any]] = {
        "path": list(map(str, batch.image_path or [""] * len(scores))),
        "score": scores,
        "label": _values(batch.pred_label, len(scores)),
        "raw_score": _values(getattr(batch, "raw_score", None), len(scores)),
        "p_value": _values(getattr(batch, "p_value", None), len(scores)),
        "true_label": _values(batch.gt_label, len(scores)),
        "categories": list(categories or [""] * len(scores)),
        "picture": getattr(batch, "picture", None) or [""] * len(scores),  # of visualizers that know it
        "box": [None] * len(scores) if boxes is None else list(map(to_box, boxes)),
    }
    return [
        Row(**dict(zip(columns, values, strict=True)), threshold=threshold)
        for values in zip(*columns.values(), strict=True)
    ]


def _values(values: Any, count: int) -> list[Any]:
    return [None] * count if values is None else values.flatten().tolist()


def box_text(box: Box) -> str:
    """The four numbers, with spaces between."""
    return " ".join(f"{number:.6g}" for number in box)


def to_box(value: Iterable[float] | None) -> Box | None:
    """What a batch has as an image's box: four finite numbers that enclose something, or no box."""
    if value is None:
        return None
    left, top, right, bottom = (float(number) for number in value)
    finite = all(map(math.isfinite, (left, top, right, bottom)))
    return (left, top, right, bottom) if finite and left < right and top < bottom else None


def open_table(path: Path, mode: str) -> IO[str]:
    """Open a table; what of an error's text is no UTF-8 is written as backslash and number."""
    return path.open(mode, newline="", encoding="utf-8", errors="backslashreplace")


def write_header(path: Path, *, selected: bool = False) -> bool:
    """Begin a new table, and say whether it was begun: one that is there is left as it is."""
    try:
        with open_table(path, "x") as file:
            csv.writer(file).writerow([*COLUMNS, SELECTED] if selected else COLUMNS)
    except FileExistsError:
        return False
    return True


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a table."""
    with open_table(path, "a") as file:
        csv.writer(file).writerows(map(cells, rows))


def append_chosen(path: Path, rows: Sequence[Row], *, novel_first: bool, target_fdr: float | None) -> int:
    """Add all rows of a table at once.

    Args:
        path: The table, with its header.
        rows: All rows.
        novel_first: Sort them, the most novel first and those without score last.
        target_fdr: With a last column that says which images are selected, so that a share of at most ``target_fdr``
            of them is expected to be normal.

    Returns:
        How many are selected.
    """
    chosen: Sequence[bool] | None = None
    if target_fdr is not None:
        found = iter(select([row.p_value for row in rows if row.p_value is not None], target_fdr).tolist())
        chosen = [row.p_value is not None and next(found) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: _novelty(rows[index])) if novel_first else range(len(rows))
    with open_table(path, "a") as file:
        writer = csv.writer(file)
        for index in order:
            mark = [] if chosen is None else [MARKS[bool(chosen[index])]]
            writer.writerow([*cells(rows[index]), *mark])
    return sum(chosen or ())


def read_table(path: Path) -> list[Row]:
    """Read a table back; names stay as they are written, ``files.names.from_text`` opens them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no table of results; names the line.
    """
    if not path.is_file():
        msg = f"{to_text(str(path))} does not exist: give a run's folder, or its test.csv or predictions.csv."
        raise FileNotFoundError(msg)
    rows: list[Row] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        absent = [name for name in ("path", "score", "label") if name not in _names(reader)]
        if absent:
            msg = (
                f"{to_text(str(path))} is no table of results, it has no column {', '.join(absent)}: give a test.csv "
                "or predictions.csv of this version, or the .csv of `anomalib-defend score`."
            )
            raise ValueError(msg)
        try:
            rows.extend(to_row(cells) for cells in reader)
        except (ValueError, KeyError, csv.Error) as error:
            msg = f"{to_text(str(path))}, line {reader.line_num}, cannot be read ({error}): test or predict anew."
            raise ValueError(msg) from error
    return rows


def _names(reader: csv.DictReader[str]) -> Sequence[str]:
    try:
        return reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error):  # Parquet, a checkpoint, a picture
        return ()


def to_row(cells: Mapping[str, str]) -> Row:
    """What ``cells`` has written, by column; names stay as they are written.

    Raises:
        KeyError, ValueError: If a cell holds something else.
    """
    labels = {text: label for label, text in LABELS.items()}
    result = Row("")
    for name in COLUMNS:
        text = cells.get(name) or ""
        value: object = text
        if name in {"label", "true_label"}:
            value = labels[text]
        elif name in {"score", "raw_score", "p_value", "threshold"}:
            value = float(text) if text else None
        elif name == "box":
            value = to_box(map(float, text.split())) if text else None
        elif text.startswith("'") and text[1:].startswith(_RUNS) and name not in {"path", "picture"}:
            value = text[1:]
        setattr(result, name, value)
    result.upper_bound = cells.get(UPPER_BOUND) == MARKS[True]
    return result


def _novelty(row: Row) -> float:
    score = row.score if row.raw_score is None else row.raw_score
    if score is None:
        return math.inf
    return -math.inf if math.isnan(score) else -score
