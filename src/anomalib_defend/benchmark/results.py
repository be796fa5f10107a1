"""The folder of a cell: its job file, log, CSV, and, once it is finished and checked, ``result.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .cell import MEASURED, SCORES
from .plan import Cell

RESULT, ERROR = "result.json", "error.txt"
_COLUMNS = (
    "accelerator",
    "job_duration",
    "fit_duration",
    "test_duration",
    "seed",
    "model.class_path",
    "data.class_path",
)


class ResultError(RuntimeError):
    """A cell's files are not what a finished cell leaves behind."""


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        row: The line of the pipeline's CSV.
        measured: What the pipeline's CSV lacks: images per second, parameters, memory, machine, versions.
        seconds: Wall clock of the whole process.
        size: Number of training and test images, pixels of the input.
        scores: ``image_path``, ``label`` (1: novel), ``score`` of each test image; where it is recorded, ``called`` (1:
            novel, at the model's threshold) and ``categories`` (joined names of what it shows), too.
    """

    row: dict[str, Any]
    measured: dict[str, Any]
    seconds: float
    size: dict[str, int]
    scores: pd.DataFrame


def read_result(folder: Path, cell: Cell) -> Result | None:
    """The cell's result, if it was finished with these settings and versions."""
    try:
        content = json.loads((folder / RESULT).read_text())
        if content.pop("key") != cell.key:
            return None
        return Result(
            **{name: content[name] for name in ("row", "measured", "seconds", "size")}, scores=_scores(folder)
        )
    except (OSError, ValueError, KeyError, ResultError):
        return None


def read_error(folder: Path, cell: Cell) -> str | None:
    """Why the cell failed with these settings and versions, if it did."""
    try:
        key, _, error = (folder / ERROR).read_text().partition("\n")
    except OSError:
        return None
    return error.strip() if key == cell.key else None


def finish(folder: Path, cell: Cell, seconds: float, size: dict[str, int]) -> Result:
    """Check what the pipeline has left, and mark the cell as finished.

    Raises:
        ResultError: If the CSV is not one row with the expected columns and a finite image AUROC.
    """
    row = _row(folder, cell)
    scores = _scores(folder)
    try:
        measured = json.loads((folder / MEASURED).read_text())
    except (OSError, ValueError) as error:
        msg = f"{MEASURED} cannot be read: {error}"
        raise ResultError(msg) from error
    content = {"key": cell.key, "row": row, "measured": measured, "seconds": seconds, "size": size}
    part = folder / f"{RESULT}.part"
    part.write_text(json.dumps(content, indent=2))
    part.replace(folder / RESULT)
    return Result(row, measured, seconds, size, scores)


def _row(folder: Path, cell: Cell) -> dict[str, Any]:
    files = sorted((folder / "runs" / "benchmark").glob("*/results.csv"))
    if len(files) != 1:
        msg = f"the pipeline wrote {len(files)} results.csv, expected one."
        raise ResultError(msg)
    try:
        table = pd.read_csv(files[0])
    except ValueError as error:
        msg = f"{files[0].name} cannot be read: {error}"
        raise ResultError(msg) from error
    if len(table) != 1:
        msg = f"{files[0].name} has {len(table)} rows, expected one."
        raise ResultError(msg)
    row: dict[str, Any] = json.loads(table.to_json(orient="records"))[0]
    missing = [name for name in (*_COLUMNS, "image_AUROC") if name not in row]
    if missing:
        msg = f"{files[0].name} lacks {', '.join(missing)}."
        raise ResultError(msg)
    if not isinstance(row["image_AUROC"], int | float) or not 0 <= row["image_AUROC"] <= 1:
        msg = f"image_AUROC is {row['image_AUROC']}, expected a number from 0 to 1."
        raise ResultError(msg)
    if row["seed"] != cell.seed:
        msg = f"{files[0].name} is of seed {row['seed']}, expected {cell.seed}."
        raise ResultError(msg)
    return row


def _scores(folder: Path) -> pd.DataFrame:
    try:
        scores = pd.read_csv(folder / SCORES, dtype={"categories": str})
        values = scores["score"].to_numpy(dtype=float)
        labels = set(scores["label"])
    except (OSError, ValueError, KeyError) as error:
        msg = f"{SCORES} cannot be read: {error}"
        raise ResultError(msg) from error
    if labels != {0, 1} or not np.isfinite(values).all() or scores["image_path"].duplicated().any():
        msg = f"{SCORES} must hold finite scores of normal and novel images, each image once."
        raise ResultError(msg)
    if "categories" in scores:
        scores["categories"] = scores["categories"].fillna("").astype(str)
    return scores
