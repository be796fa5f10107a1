"""Tables of a comparison in Markdown: image AUROC, paired difference to the reference, and what each model costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from anomalib_defend.decision.ranking import REPLICATES, auroc

from . import papers
from .plan import Cell, Comparison, read_plan
from .results import Result, read_error, read_result
from .statistics import Difference, difference, pair

MEAN = "mean"


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


class Table:
    """All outcomes of one or several comparisons, and the figures of the report.

    Args:
        folders: Folders of results; a cell that several hold is taken from the first.

    Raises:
        ComparisonError: If a folder holds no results.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
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
        first: dict[tuple[str, str, str, int], Outcome] = {}  # a cell that several folders hold counts once
        for outcome in self.outcomes:
            cell = outcome.cell
            first.setdefault((cell.model, cell.data, cell.category, cell.seed), outcome)
        self.outcomes = list(first.values())
        self._places: dict[tuple[str, str, str], list[Outcome]] = {}
        for outcome in self.outcomes:
            cell = outcome.cell
            self._places.setdefault((cell.model, cell.data, cell.category), []).append(outcome)

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

    # ------------------------------------------------------------------------------------------------------ Markdown

    def markdown(self) -> str:
        """The whole report."""
        parts = [f"# {self.comparison.title}", self._about(), *self._auroc(), *self._near(), *self._differences()]
        return "\n\n".join([*parts, *self._pixels(), *self._costs(), *self._missing()]) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """Data and category of each row; data with several categories end with their mean."""
        rows = []
        for data in self.comparison.data:
            names = self.categories(data)
            rows += [(data, name) for name in names] + ([(data, MEAN)] if len(names) > 1 else [])
        return rows

    def _about(self) -> str:
        results = [outcome.result for outcome in self.outcomes if outcome.result]
        machines = sorted({result.measured["machine"] for result in results})
        return (
            f"{len(results)} of {len(self.outcomes)} cells are finished; one cell is model x data x category x seed, "
            f"run by anomalib's benchmark pipeline. Measured on: {' and on '.join(machines)}."
        )

    def _auroc(self) -> list[str]:
        own = {data: rows for data, rows in self._papers().items() if data not in self.comparison.by_novel_class}
        head = ["data", "category", *self.comparison.models, *([papers.LABEL] if own else [])]
        lines = []
        for data, category in self.rows():
            line = [data, category, *(self._auroc_text(model, data, category) for model in self.comparison.models)]
            if own:
                line.append(_papers_text(own.get(data, {}), category))
            lines.append(line)
        note = (
            "Mean over seeds ± standard deviation over seeds (n - 1; none for one seed). The AUROC is that of the "
            "model's own scores, before post-processing. A mean over categories is of the seeds that all of them have."
        )
        if own:
            note += (
                " The last column is copied from the papers, not measured here: ViT-B/16 of ImageNet-21k unless it "
                "says otherwise, all images, means over all categories of the data set."
            )
        return ["## Image AUROC", _markdown(head, lines), note, *self._clamped()]

    def _papers(self) -> dict[str, dict[str, dict[str, float]]]:
        return {data: papers.figures(table) for data, table in self.comparison.papers.items()}

    def _auroc_text(self, model: str, data: str, category: str) -> str:
        values = self.values(model, data, category)
        if category == MEAN:
            return _spread(values) if values else ""
        cells = self.cells(model, data, category)
        if not cells:
            return ""  # not planned
        failed = sum(outcome.error is not None for outcome in cells)
        missing = len(cells) - len(values) - failed
        texts = [_spread(values)] if values else []
        texts += [f"{failed} failed"] if failed else []
        texts += [f"{missing} missing"] if missing else []
        return ", ".join(texts)

    def _clamped(self) -> list[str]:
        """Where anomalib's own metric, after post-processing, is another figure."""
        worst: dict[str, float] = {}
        for outcome in self.outcomes:
            if outcome.result is not None and outcome.auroc is not None:
                deviation = outcome.result.row["image_AUROC"] - outcome.auroc
                if abs(deviation) > max(abs(worst.get(outcome.cell.model, 0)), 0.001):
                    worst[outcome.cell.model] = deviation
        return [
            f"{model}: the `image_AUROC` in anomalib's CSV, taken after its post-processor has scaled and clamped the "
            f"scores, deviates by up to {deviation:+.3f}."
            for model, deviation in worst.items()
        ]

    def _near(self) -> list[str]:
        """The near-distribution protocol: the novel class that is hardest for each category."""
        lines = []
        for data in self.comparison.by_novel_class:
            columns = []
            for model in self.comparison.models:
                rows = [
                    [_hardest(outcome.result) for outcome in self.cells(model, data, category) if outcome.result]
                    for category in self.categories(data)
                ]
                total = f"{mean(mean(row) for row in rows):.3f}" if all(rows) else ""
                columns.append([*(_spread(row) if row else "" for row in rows), total])
            names = [*self.categories(data), MEAN]
            columns.append([_papers_text(self._papers().get(data, {}), name) for name in names])
            lines += [[data, *line] for line in zip(names, *columns, strict=True)]
        if not lines:
            return []
        head = ["data", "category", *self.comparison.models, papers.LABEL]
        note = "Image AUROC against the novel class, a folder of images, against which it is lowest; mean over seeds."
        return ["## Hardest novel class", _markdown(head, lines), note]

    def _differences(self) -> list[str]:
        reference = self.comparison.reference
        others = [name for name in self.comparison.models if name != reference]
        lines = []
        for data, category in self.rows():
            found = [self.difference(model, data, category) for model in others]
            if any(found):
                lines.append([data, category, *map(_difference_text, found)])
        if not lines:
            return []
        note = (
            f"AUROC minus that of {reference} on the same test images of the same seed, mean over seeds, and its 95 % "
            f"interval from {REPLICATES} bootstrap replicates over the test images, drawn within normal and novel ones "
            "(for means over categories among all, an image's label not being the same in all of them). Bold: clear of "
            "zero. The chance in training is not in the interval."
        )
        title = f"## Paired difference to {reference}"
        return [title, _markdown(["data", "category", *others], lines), note]

    def _costs(self) -> list[str]:
        head = ["data", "model", "training", "test images/s", "parameters", "peak memory"]
        lines = []
        for data in self.comparison.data:
            for model in self.comparison.models:
                results = [
                    outcome.result
                    for outcome in self.outcomes
                    if outcome.result and (outcome.cell.data, outcome.cell.model) == (data, model)
                ]
                if results:
                    seconds = _mean(result.row["fit_duration"] for result in results)
                    speed = _mean(result.measured["images_per_second"] for result in results)
                    parameters = _mean(result.measured["parameters"] for result in results)
                    memory = max(result.measured["peak_memory_gb"] for result in results)
                    line = [data, model, f"{seconds:.0f} s", f"{speed:.1f}", f"{parameters / 1e6:.1f} M"]
                    lines.append([*line, f"{memory:.1f} GB"])
        note = (
            "Means over categories and seeds; the memory is the largest. Training is the pipeline's fit with its "
            "validation, without the test; images/s are those of the test with reading the files."
        )
        return ["## Cost", _markdown(head, lines), note] if lines else []

    def _pixels(self) -> list[str]:
        lines = []
        for data, category in self.rows():
            texts = []
            for model in self.comparison.models:
                rows = [outcome.result.row for outcome in self.cells(model, data, category) if outcome.result]
                values = [row["pixel_AUROC"] for row in rows if row.get("pixel_AUROC") is not None]
                texts.append(_spread(values) if values else "")
            if any(texts):
                lines.append([data, category, *texts])
        head = ["data", "category", *self.comparison.models]
        return ["## Pixel AUROC", _markdown(head, lines)] if lines else []

    def _missing(self) -> list[str]:
        lines = [
            f"- {outcome.cell}: {f'failed, {outcome.error}' if outcome.error else 'not run with these settings'}"
            for outcome in self.outcomes
            if outcome.result is None
        ]
        return ["## Failed and missing cells", "\n".join(lines)] if lines else []


def _hardest(result: Result) -> float:
    """Lowest AUROC of all normal test images against those of one folder of novel ones."""
    scores = result.scores
    folders = scores["image_path"].map(lambda path: Path(path).parent)
    normal = scores["label"] == 0
    return min(
        float(auroc(part["label"].to_numpy(), part["score"].to_numpy())[0])
        for part in (scores[normal | (folders == folder)] for folder in folders[~normal].unique())
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _papers_text(figures: dict[str, dict[str, float]], row: str) -> str:
    return "; ".join(f"{method} {rows[row]:.3f}" for method, rows in figures.items() if row in rows)


def _difference_text(found: Difference | str | None) -> str:
    if not isinstance(found, Difference):
        return found or ""
    text = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"**{text}**" if found.clear else text


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cell: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in rows)
