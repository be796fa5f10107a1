"""Plots of a comparison: image AUROC, the paired difference, and AUROC against the cost."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .statistics import Difference
from .table import Table

mpl.use("agg")


def save_plots(table: Table, folder: Path) -> list[Path]:
    """Write the PNG files; one that would be empty is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"auroc": _auroc(table), "difference": _differences(table), "cost": _cost(table)}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150, bbox_inches="tight")
    return paths


def _rows(table: Table) -> list[tuple[str, str]]:
    return table.rows()[::-1]  # the first one on top


def _canvas(table: Table) -> Figure:
    return Figure(figsize=(8, 1.5 + 0.12 * len(table.rows()) * max(len(table.comparison.models), 2)))


def _label(axes: object, rows: list[tuple[str, str]]) -> None:
    axes.set_yticks(range(len(rows)), [f"{data}, {category}" for data, category in rows])  # type: ignore[attr-defined]


def _auroc(table: Table) -> Figure | None:
    figure = _canvas(table)
    axes = figure.subplots()
    rows, models = _rows(table), table.comparison.models
    drawn = False
    for index, model in enumerate(models):
        points = [(position, values) for position, row in enumerate(rows) if (values := table.values(model, *row))]
        if points:
            drawn = True
            axes.errorbar(
                [mean(values) for _, values in points],
                [position + _offset(index, len(models)) for position, _ in points],
                xerr=[stdev(values) if len(values) > 1 else 0 for _, values in points],
                linestyle="none",
                markersize=4,
                label=model,
                **_style(table, model),
            )
    _label(axes, rows)
    axes.set_xlabel("image AUROC: mean, standard deviation over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure if drawn else None


def _differences(table: Table) -> Figure | None:
    figure = _canvas(table)
    axes = figure.subplots()
    rows = _rows(table)
    models = [name for name in table.comparison.models if name != table.comparison.reference]
    drawn = False
    for index, model in enumerate(models):
        found = [(position, table.difference(model, *row)) for position, row in enumerate(rows)]
        points = [(position, value) for position, value in found if isinstance(value, Difference)]
        if points:
            drawn = True
            axes.errorbar(
                [value.mean for _, value in points],
                [position + _offset(index, len(models)) for position, _ in points],
                xerr=[
                    [value.mean - value.low for _, value in points],
                    [value.high - value.mean for _, value in points],
                ],
                linestyle="none",
                markersize=4,
                label=model,
                **_style(table, model),
            )
    axes.axvline(0, color="black", linewidth=0.8)
    _label(axes, rows)
    axes.set_xlabel(f"image AUROC minus that of {table.comparison.reference}, 95 % interval over test images")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure if drawn else None


def _cost(table: Table) -> Figure | None:
    """Training time against AUROC, one point for each model and data."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for model in table.comparison.models:
        costs = [table.cost(model, data) for data in table.comparison.data]
        points = [(cost.seconds, cost.auroc) for cost in costs if cost is not None]
        if points:
            drawn = True
            seconds, values = zip(*points, strict=True)
            axes.scatter(seconds, values, s=20, label=model, **_style(table, model))
    axes.set_xscale("log")
    axes.set_xlabel("training time (s)")
    axes.set_ylabel("image AUROC, mean of finished cells")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure if drawn else None


def _style(table: Table, model: str) -> dict[str, Any]:
    """The same in all plots; after ten models the colours come again with another marker."""
    markers, index = "osD^v", table.comparison.models.index(model)
    return {"color": f"C{index % 10}", "marker": markers[index // 10 % len(markers)]}


def _offset(index: int, number: int) -> float:
    return 0.6 * (0.5 - (index + 0.5) / number)
