"""How long the missing cells will take, from cells that were measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from .build import Size
from .plan import Cell
from .results import Result


@dataclass(frozen=True)
class Estimate:
    """Seconds of one cell, and what the number rests on."""

    seconds: float
    basis: str


class Budget:
    """Finished cells, and what they say about others with the same model settings.

    The same data: the mean of their wall clocks. Other data: training and test of the cell most similar in size, scaled
    by images times pixels, and the start of the process as it is.
    """

    def __init__(self, finished: Iterable[tuple[Cell, Result]]) -> None:
        self._finished: dict[str, list[tuple[Cell, Result]]] = {}
        for cell, result in finished:
            self.add(cell, result)

    def add(self, cell: Cell, result: Result) -> None:
        """Take a finished cell in."""
        self._finished.setdefault(cell.variant, []).append((cell, result))

    def estimate(self, cell: Cell, size: Size | None) -> Estimate | None:
        """Seconds of a cell; ``None`` if no cell that could tell has been measured.

        Without its ``size``, as long as the data have not been read, only cells of the same data can.
        """
        finished = self._finished.get(cell.variant, [])
        same = [
            result.seconds
            for other, result in finished
            if other.data == cell.data and (size is None or result.size == vars(size))
        ]
        if same:
            return Estimate(mean(same), f"{len(same)} finished cell(s) of the same data{' and size' if size else ''}")
        if not finished or size is None:
            return None
        cell, result = min(finished, key=lambda other: abs(math.log(_work(other[1].size) / _work(vars(size)))))
        return Estimate(_scale(result, size), f"{cell}, by images x pixels")

    def unknown(self, cells: Sequence[Cell], sizes: Mapping[str, Size]) -> list[Cell]:
        """The cheapest cell of each model about which nothing is known."""
        cheapest: dict[str, Cell] = {}
        for cell in sorted(cells, key=lambda cell: sizes[cell.key].train_images * sizes[cell.key].pixels):
            if cell.variant not in self._finished:
                cheapest.setdefault(cell.variant, cell)
        return list(cheapest.values())

    def seconds(self, cells: Iterable[Cell], sizes: Mapping[str, Size]) -> float | None:
        """Seconds of all cells one after the other; ``None`` if a model has not been measured."""
        estimates = [self.estimate(cell, sizes.get(cell.key)) for cell in cells]
        known = [estimate.seconds for estimate in estimates if estimate is not None]
        return sum(known) if len(known) == len(estimates) else None

    def table(self, cells: Sequence[Cell], sizes: Mapping[str, Size]) -> list[str]:
        """One line for each model and data."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.model, cell.data), []).append(cell)
        lines = []
        for (model, data), group in groups.items():
            first = self.estimate(group[0], sizes.get(group[0].key))
            images = max((sizes[cell.key].train_images for cell in group if cell.key in sizes), default=None)
            up_to = "" if images is None else f", up to {images} training images"
            total = self.seconds(group, sizes)
            time = "not measured yet" if total is None else f"{clock(total)}, from {first.basis if first else ''}"
            lines.append(f"  {model} | {data}: {len(group)} cell(s){up_to}: {time}")
        return lines


def _work(size: Mapping[str, int]) -> int:
    return size["train_images"] * size["pixels"]


def _scale(result: Result, size: Size) -> float:
    fit, test = result.row["fit_duration"], result.row["test_duration"]
    pixels = size.pixels / result.size["pixels"]
    return (
        max(result.seconds - fit - test, 0)
        + fit * pixels * size.train_images / result.size["train_images"]
        + test * pixels * size.test_images / result.size["test_images"]
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
