"""The page of a finished test or prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.data.protocol import SEPARATOR
from anomalib_defend.decision.table import box_text, read_table
from anomalib_defend.files.names import to_text

from . import figures
from .pictures import chosen, encoded, is_mistake
from .rendering import write_page
from .run import Run, find_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_defend.decision.table import Row


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: The page.
        table: What it is made of.
        images: Scored images in it.
        pictures: Those of them that are shown.
        sentence: The verdict.
    """

    path: Path
    table: Path
    images: int
    pictures: int
    sentence: str


def write_report(source: Path, out: Path | None = None, model: Path | None = None) -> Report:
    """Write the page of a finished test or prediction.

    Args:
        source: A run's folder, or its table.
        out: The page; ``report.html`` beside the table by default. A page that is there is replaced.
        model: Checkpoint, export or ``.calibration.json``, where the folder does not tell what the scores mean.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If it holds no score, its labels do not follow from its scores, or ``model`` has another threshold.
    """
    run = find_run(source, model)
    rows = read_table(run.table)
    scored = sorted((row for row in rows if _is_number(row.score)), key=lambda row: -(row.score or 0.0))
    if not scored:
        msg = f"{to_text(str(run.table))} holds no scored image: test or predict first."
        raise ValueError(msg)
    if model is not None:
        _check_threshold(scored, run, model)
    threshold = figures.threshold_of(scored, run.calibration)
    shown = chosen(scored, threshold)
    pictures = dict(zip(shown, encoded([scored[index] for index in shown], run.table.parent), strict=True))
    out = run.table.with_name("report.html") if out is None else out
    errors = [row for row in rows if not _is_number(row.score)]
    sentence = verdict(scored, run, len(errors))
    write_page(
        out,
        "report",
        _data(scored, threshold, run, pictures),
        run=run,
        sentence=sentence,
        curves=figures.curves(scored),
        histogram=figures.histogram(scored, threshold),
        errors=errors,
        selection=_selection(scored, shown, pictures),
    )
    return Report(out, run.table, len(scored), sum(picture is not None for picture in pictures.values()), sentence)


def _check_threshold(rows: Sequence[Row], run: Run, model: Path) -> None:
    """Refuse a model that has not made the table: what its validation scores promise is of another threshold."""
    told = next((row.threshold for row in rows if row.threshold is not None), None)
    if told is None or run.calibration is None:
        return
    known = run.calibration.label_threshold
    if not math.isclose(told, known, rel_tol=1e-6, abs_tol=1e-9):
        msg = (
            f"{to_text(str(model))} has the threshold {known:.6g}, {to_text(str(run.table))} was made with {told:.6g}: "
            "give the model that made the table."
        )
        raise ValueError(msg)


def verdict(rows: Sequence[Row], run: Run, unscored: int = 0) -> str:
    """The outcome in a few sentences, with the number of false alarms that is expected.

    Args:
        rows: The scored images.
        run: Theirs.
        unscored: How many others there are.
    """
    labelled = any(row.label is not None for row in rows)
    sentences = [_called(rows, run), _mistaken(rows, run)] if labelled else []
    if not labelled:
        sentences.append(f"{_images(len(rows))} with a score and no verdict: the model gives no labels.")
    if unscored:
        sentences.append(f"{_images(unscored)} could not be scored.")
    bounds = sum(row.upper_bound for row in rows)
    if bounds:
        sentences.append(
            f"Of {_images(bounds)} the first view alone was looked at: the score may be lower than is shown here, the "
            "p-value higher, and the threshold can be moved up alone."
        )
    sentences.append(run.unfinished())
    return " ".join(filter(None, sentences))


def _called(rows: Sequence[Row], run: Run) -> str:
    novel = sum(row.label is True for row in rows)
    names = run.normal_categories()
    does = (
        f"{'does' if novel == 1 else 'do'} not show {_listed(names)}"
        if names
        else "is novel"
        if novel == 1
        else "are novel"
    )
    sentence = f"Of {_images(len(rows))} {novel} {does}, says the model"
    if run.calibration is None:
        unknown = "how many false alarms were to be expected is not known, since the run keeps no validation scores"
        return f"{sentence}; {unknown}."
    hundred = run.calibration.expected_count(100)
    return (
        f"{sentence}; about {hundred.mean:.0f} of 100 normal images are expected to be called novel "
        f"(95 % interval {hundred.low:.0f} to {hundred.high:.0f})."
    )


def _mistaken(rows: Sequence[Row], run: Run) -> str:
    """False alarms and misses; empty where it is not known what the images are."""
    normal, novel = ([row for row in rows if row.true_label is truth] for truth in (False, True))
    clauses = []
    if normal:
        clauses.append(f"of the {len(normal)} normal ones {sum(map(is_mistake, normal))} were called novel")
        if run.calibration is not None:
            expected = run.calibration.expected_count(len(normal))
            interval = f"95 % interval {expected.low:.0f} to {expected.high:.0f}"
            clauses[0] += f" ({expected.mean:.1f} expected, {interval})"
    if novel:
        clauses.append(f"of the {len(novel)} novel ones {sum(map(is_mistake, novel))} were missed")
    return f"O{'; '.join(clauses)[1:]}." if clauses else ""


def _data(
    rows: Sequence[Row], threshold: float | None, run: Run, pictures: dict[int, tuple[str, str] | None]
) -> dict[str, Any]:
    """What the script needs; of each image a list, since names would be half of the page."""
    known = [_categories(row) for row in rows]
    names = sorted({name for categories in known for name in categories})
    numbers = {name: number for number, name in enumerate(names)}
    truth = {None: -1, False: 0, True: 1}
    return {
        "threshold": threshold,
        "validation": [] if run.calibration is None else figures.validation_scores(run.calibration),
        "categories": names,
        "rows": [
            [
                row.path,
                row.score,
                row.p_value if _is_number(row.p_value) else None,
                truth[row.true_label],
                [numbers[name] for name in categories],
                None if row.box is None else box_text(row.box),
                int(row.upper_bound),
            ]
            for row, categories in zip(rows, known, strict=True)
        ],
        "pictures": {index: picture for index, picture in pictures.items() if picture is not None},
    }


def _selection(rows: Sequence[Row], shown: Sequence[int], pictures: dict[int, Any]) -> str:
    """Which images have a picture, where not all have."""
    drawn = [index for index in shown if pictures[index] is not None]
    absent = len(shown) - len(drawn)
    unread = f"{_images(absent)} could be read no more, and {'has' if absent == 1 else 'have'} no picture."
    sentences = [unread] if absent else []
    if len(shown) < len(rows):
        wrong, with_picture = sum(map(is_mistake, rows)), sum(is_mistake(rows[index]) for index in drawn)
        sentences.insert(
            0,
            f"Of {len(rows)} images {len(drawn)} have a picture: {with_picture} of the {wrong} mistakes and the images "
            "nearest to the threshold. The others are listed without.",
        )
    return " ".join(sentences)


def _categories(row: Row) -> list[str]:
    return [name for name in row.categories.split(SEPARATOR) if name]


def _listed(names: Sequence[str]) -> str:
    return " or ".join(f"“{name}”" for name in names)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
