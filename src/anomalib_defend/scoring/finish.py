"""From the rows of a finished run to the table, as CSV or as Parquet: complete or not at all."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.decision.table import MARKS, SELECTED, open_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .journal import Journal

FORMATS = (".csv", ".parquet")
_NUMBERS = {"score", "raw_score", "p_value", "threshold"}
_ROWS = 50_000  # of a Parquet file's row group


def check_format(out: Path) -> None:
    """Check what a table's file is to be, before anything is scored.

    Raises:
        ValueError: If it is neither CSV nor Parquet.
        ModuleNotFoundError: If it is Parquet, and pyarrow is not installed.
    """
    if out.suffix not in FORMATS:
        msg = f"--out {out} must end with {' or '.join(FORMATS)}."
        raise ValueError(msg)
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401, PLC0415 - optional extra
        except ModuleNotFoundError as error:
            msg = f"--out {out} needs pyarrow: pip install 'anomalib-defend[parquet]', or write a .csv."
            raise ModuleNotFoundError(msg, name=error.name) from error


def write_table(journal: Journal, out: Path, is_selected: Callable[[float | None], bool] | None) -> None:
    """Write the table; the journal stays, unless it becomes the table.

    Args:
        journal: All rows.
        out: The table.
        is_selected: By its p-value, whether an image is selected; without it, there is no such column.
    """
    columns = [*journal.columns, *([SELECTED] if is_selected else [])]
    if out.suffix == ".csv" and is_selected is None:
        journal.become(out)
        return
    draft = out.with_name(f"{out.name}.draft")
    rows = _rows(journal.read(), is_selected)
    if out.suffix == ".csv":
        with open_table(draft, "w") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([row[name] for name in columns] for row in rows)
    else:
        write_parquet(draft, columns, rows)
    draft.replace(out)


def _rows(
    rows: Iterable[dict[str, str]], is_selected: Callable[[float | None], bool] | None
) -> Iterator[dict[str, str]]:
    for row in rows:
        if is_selected is not None:
            text = row["p_value"]
            row[SELECTED] = MARKS[is_selected(float(text) if text else None)]
        yield row


def write_parquet(file: Any, columns: Sequence[str], rows: Iterator[dict[str, str]]) -> None:
    """Write the cells of a CSV table: numbers as float64, all others as text, empty ones as null.

    Args:
        file: A path, or an open file.
        columns: Their names.
        rows: By column.
    """
    import pyarrow as pa  # noqa: PLC0415 - optional extra
    from pyarrow import parquet  # noqa: PLC0415 - optional extra

    schema = pa.schema([(name, pa.float64() if name in _NUMBERS else pa.string()) for name in columns])

    def value(name: str, text: str) -> Any:
        if not text:
            return None
        return float(text) if name in _NUMBERS else text

    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, _ROWS)):
            arrays = {name: [value(name, row[name]) for row in group] for name in columns}
            writer.write_table(pa.table(arrays, schema=schema))
