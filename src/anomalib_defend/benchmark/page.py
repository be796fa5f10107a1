"""The report of a comparison as one page for a browser, of the same parts as a run's."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from anomalib_defend.decision.table import Row
from anomalib_defend.files.names import to_text
from anomalib_defend.reporting.pictures import encoded
from anomalib_defend.reporting.rendering import write_page

from .images import wrong_shares
from .report import about, missing, sections
from .table import Cost, Table
from .verdict import verdict

PICTURES = 400
"""Cards of the gallery, all models and data together; some are of the same image."""
_LEAST, _MOST = 3, 12  # cards of one model and data
_KEYS = ["data", "category", "image_path", "label"]


def write_report(table: Table, folders: Sequence[Path], out: Path) -> None:
    """Write the page; one that is there is replaced.

    Args:
        table: Of the comparison.
        folders: The results that it was read from.
        out: The page, ``.html``.
    """
    write_page(
        out,
        "comparison",
        _data(table),
        title=table.comparison.title,
        sentence=verdict(table),
        about=about(table),
        sections=sections(table),
        missing=missing(table),
        plots=[plot for data in table.comparison.data if (plot := cost_plot(table, data))],
        command=to_text(shlex.join(["anomalib-defend", "benchmark", "report", *map(str, folders), "--out", str(out)])),
    )


# ------------------------------------------------------------------------------------------------------- cost


class Point(NamedTuple):
    """A model in the plot: its number in the legend, its place in the square from 0 to 1, and words."""

    number: int
    across: float
    up: float
    words: str


@dataclass(frozen=True)
class Plot:
    """Training time (logarithmic) against AUROC on some data; ticks are places from 0 to 1 and their texts."""

    data: str
    points: list[Point]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def cost_plot(table: Table, data: str) -> Plot | None:
    """Where each model lies; None if nothing is finished."""
    costs = [(model, cost) for model in table.comparison.models if (cost := table.cost(model, data)) is not None]
    if not costs:
        return None
    logs = [_log(cost) for _, cost in costs]
    first, last = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    bottom, top = _range([cost.auroc for _, cost in costs])
    return Plot(
        data,
        [
            Point(
                number,
                (_log(cost) - first) / (last - first),
                (cost.auroc - bottom) / (top - bottom),
                f"{model}: {cost.seconds:.0f} s, AUROC {cost.auroc:.3f}",
            )
            for number, (model, cost) in enumerate(costs, 1)
        ],
        [((power - first) / (last - first), f"{10**power:g}") for power in range(first, last + 1)],
        [(step / 4, f"{bottom + step * (top - bottom) / 4:.3g}") for step in range(5)],
    )


def _log(cost: Cost) -> float:
    return math.log10(max(cost.seconds, 0.1))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Whole twentieths around values from 0 to 1."""
    bottom, top = math.floor(20 * min(values)) / 20, math.ceil(20 * max(values)) / 20
    return (bottom, top) if top > bottom else (max(0.0, bottom - 0.05), bottom + 0.05)


# -------------------------------------------------------------------------------------------------- mistaken images


def mistaken(table: Table) -> pd.DataFrame:
    """The most mistaken images of each model and data, and of all models together (``model`` is empty), worst first.

    Returns:
        Columns ``model``, ``data``, ``category`` (of the test), ``image_path``, ``label`` (1: novel), ``share`` (see
        ``images.wrong_shares``; mean over seeds, or over models and seeds) and ``shows`` (categories, where recorded).
    """
    frames = []
    for cell, result in table.results:
        scores = result.scores
        frame = scores[["image_path", "label"]].assign(model=cell.model, data=cell.data, category=cell.category)
        frame["share"] = wrong_shares(scores["label"].to_numpy(), scores["score"].to_numpy())
        frame["shows"] = scores.get("categories", "")
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["model", *_KEYS, "share", "shows"])
    every = pd.concat(frames)
    aggregated = {"share": ("share", "mean"), "shows": ("shows", "max")}
    each = every.groupby(["model", *_KEYS], as_index=False).agg(**aggregated)
    together = each.groupby(_KEYS, as_index=False).agg(**aggregated).assign(model="")
    both = pd.concat([together, each]).sort_values("share", ascending=False, kind="stable")
    groups = both.groupby(["model", "data"])
    return groups.head(min(max(PICTURES // max(groups.ngroups, 1), _LEAST), _MOST))


def _data(table: Table) -> dict[str, Any]:
    """What the script needs; a picture once, whichever models mistake its image."""
    found = mistaken(table)
    models, data = ["", *table.comparison.models], table.comparison.data
    paths = list(dict.fromkeys(found["image_path"]))
    pictures = encoded([Row(path) for path in paths], Path())
    numbers = {path: number for number, path in enumerate(paths)}
    return {
        "models": models,
        "data": data,
        "pictures": [None if picture is None else picture[0] for picture in pictures],
        "mistakes": [
            [
                models.index(line.model),
                data.index(line.data),
                line.category,
                line.image_path,
                int(line.label),
                round(float(line.share), 4),
                line.shows,
                numbers[line.image_path],
            ]
            for line in found.itertuples()
        ],
    }
