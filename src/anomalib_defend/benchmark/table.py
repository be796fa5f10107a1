"""The figures of a comparison: what its finished cells say of each model, data and category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean

from anomalib_defend.decision.ranking import auroc

from . import papers
from .images import Called, NovelClass, called, novel_classes
from .plan import Cell, Comparison, ComparisonError, read_plan
from .results import Result, read_error, read_result
from .statistics import Difference, difference, pair

MEAN = "mean"
"""The row below those of the categories."""


@dataclass(frozen=True)
class Outcome:
    """A cell and what has become of it: a result, or why there is none."""

    cell: Cell
    result: Result | None
    error: str | None

    @cached_property
    def auroc(self) -> float | None:
        """Image AUROC of the model's own scores."""
        if self.result is None:
            return None
        scores = self.result.scores
        return float(auroc(scores["label"].to_numpy(), scores["score"].to_numpy())[0])


@dataclass(frozen=True)
class Cost:
    """What a model costs on some data: means over categories and seeds; the memory is the largest."""

    seconds: float
    """Of training with validation."""
    images_per_second: float
    """Of the test, with reading the files."""
    parameters: float
    memory_gb: float
    auroc: float
    """Mean of the finished cells that these are the costs of."""


class Table:
    """All outcomes of one or several comparisons, and the figures of the report.

    Args:
        folders: Folders of results; a cell that several hold is taken from the first.
        reference: The model to compare with; that of the first comparison by default.

    Raises:
        ComparisonError: If a folder holds no results, or there is no such model.
    """

    def __init__(self, folders: Sequence[Path], reference: str | None = None) -> None:
        self.outcomes: list[Outcome] = []
        comparisons = []
        for folder in folders:
            comparison = read_plan(folder)
            comparisons.append(comparison)
            for cell in comparison.cells:
                place = folder / cell.folder
                result = read_result(place, cell)
                self.outcomes.append(Outcome(cell, result, None if result else read_error(place, cell)))
        self.comparison: Comparison = replace(
            comparisons[0],
            title=" and ".join(dict.fromkeys(comparison.title for comparison in comparisons)),
            models=list(dict.fromkeys(name for comparison in comparisons for name in comparison.models)),
            data=list(dict.fromkeys(name for comparison in comparisons for name in comparison.data)),
            by_novel_class=[name for comparison in comparisons for name in comparison.by_novel_class],
            papers={key: value for comparison in comparisons for key, value in comparison.papers.items()},
        )
        if reference is not None:
            if reference not in self.comparison.models:
                msg = f"--reference {reference}: there is no such model, only {', '.join(self.comparison.models)}."
                raise ComparisonError(msg)
            self.comparison = replace(self.comparison, reference=reference)
        first: dict[tuple[str, str, str, int], Outcome] = {}  # a cell that several folders hold counts once
        for outcome in self.outcomes:
            cell = outcome.cell
            first.setdefault((cell.model, cell.data, cell.category, cell.seed), outcome)
        self.outcomes = list(first.values())
        self._places: dict[tuple[str, str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            cell = outcome.cell
            self._places.setdefault((cell.model, cell.data, cell.category), []).append(outcome)
        self._differences: dict[tuple[str, str, str], Difference | str | None] = {}  # thousands of replicates each

    @property
    def results(self) -> list[tuple[Cell, Result]]:
        """The finished cells."""
        return [(outcome.cell, outcome.result) for outcome in self.outcomes if outcome.result is not None]

    @cached_property
    def papers(self) -> dict[str, dict[str, dict[str, float]]]:
        """The papers' own figures by data, method and category."""
        known = {name: table for name, table in self.comparison.papers.items() if name in self.comparison.data}
        return {name: papers.figures(table) for name, table in known.items()}

    def rows(self) -> list[tuple[str, str]]:
        """Data and category of each row; data with several categories end with their mean."""
        rows = []
        for data in self.comparison.data:
            names = self.categories(data)
            rows += [(data, name) for name in names] + ([(data, MEAN)] if len(names) > 1 else [])
        return rows

    def last_row(self, data: str) -> str:
        """The row that stands for some data: the mean, or the only category."""
        names = self.categories(data)
        return MEAN if len(names) > 1 else names[0]

    def categories(self, data: str) -> list[str]:
        """Rows of some data."""
        return list(dict.fromkeys(outcome.cell.category for outcome in self.outcomes if outcome.cell.data == data))

    def cells(self, model: str, data: str, category: str) -> list[Outcome]:
        """All seeds of one place in the table."""
        return self._places.get((model, data, category), [])

    def values(self, model: str, data: str, category: str) -> list[float]:
        """Image AUROC of each finished seed; in the row of the mean, of the seeds that all categories have."""
        if category != MEAN:
            return [value for outcome in self.cells(model, data, category) if (value := outcome.auroc) is not None]
        by_seed: dict[int, list[float]] = {}
        for name in self.categories(data):
            for outcome in self.cells(model, data, name):
                if outcome.auroc is not None:
                    by_seed.setdefault(outcome.cell.seed, []).append(outcome.auroc)
        return [mean(by_seed[seed]) for seed in self._complete_seeds(model, data)]

    def _complete_seeds(self, model: str, data: str) -> list[int]:
        """Seeds with which all categories are finished."""
        rows = [{o.cell.seed for o in self.cells(model, data, name) if o.result} for name in self.categories(data)]
        return sorted(set.intersection(*rows))

    def difference(self, model: str, data: str, category: str) -> Difference | str | None:
        """Paired difference to the reference; a text if it was tested on other images, ``None`` if there is no pair."""
        place = (model, data, category)
        if place not in self._differences:
            self._differences[place] = self._difference(*place)
        return self._differences[place]

    def _difference(self, model: str, data: str, category: str) -> Difference | str | None:
        rows = self.categories(data) if category == MEAN else [category]
        seeds = self._complete_seeds(model, data) if category == MEAN else None
        pairs = []
        for row in rows:
            theirs = {outcome.cell.seed: outcome.result for outcome in self.cells(self.comparison.reference, data, row)}
            both = [
                (outcome.result, reference)
                for outcome in self.cells(model, data, row)
                if (seeds is None or outcome.cell.seed in seeds)
                and outcome.result is not None
                and (reference := theirs.get(outcome.cell.seed)) is not None
            ]
            for ours, reference in both:
                paired = pair(ours.scores, reference.scores)
                if paired is None:
                    return "other test images"
                pairs.append(replace(paired, weight=1 / len(both)))
            if not both:
                return None
        return difference(pairs)

    def finished(self, model: str, data: str, category: str) -> list[Result]:
        """Results of the finished seeds of one place in the table; of the mean, of all its categories."""
        names = self.categories(data) if category == MEAN else [category]
        return [outcome.result for name in names for outcome in self.cells(model, data, name) if outcome.result]

    def hardest(self, model: str, data: str, category: str) -> NovelClass | None:
        """The novel class against which the mean AUROC over the seeds is lowest; None where classes are not known."""
        by_folder = data in self.comparison.by_novel_class
        seeds = [novel_classes(result.scores, by_folder) for result in self.finished(model, data, category)]
        if not seeds:
            return None
        everywhere = set.intersection(*(set(classes) for classes in seeds))
        found = [
            NovelClass(name, mean(classes[name].auroc for classes in seeds), seeds[0][name].images)
            for name in sorted(everywhere)
        ]
        return min(found, key=lambda one: one.auroc, default=None)

    def called(self, model: str, data: str, category: str) -> Called | None:
        """False alarms and misses of all seeds together; None where a cell has not recorded them."""
        found = [called(result.scores) for result in self.finished(model, data, category)]
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return None
        return Called(*(sum(getattr(one, name) for one in known) for name in Called._fields))

    def cost(self, model: str, data: str) -> Cost | None:
        """What a model costs on some data; None if no cell is finished."""
        outcomes = [
            outcome
            for name in self.categories(data)
            for outcome in self.cells(model, data, name)
            if outcome.result is not None
        ]
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        if not results:
            return None
        return Cost(
            mean(result.row["fit_duration"] for result in results),
            mean(result.measured["images_per_second"] for result in results),
            mean(result.measured["parameters"] for result in results),
            max(result.measured["peak_memory_gb"] for result in results),
            mean(outcome.auroc for outcome in outcomes if outcome.auroc is not None),
        )
