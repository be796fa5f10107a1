"""The report of a comparison: a sentence and tables, which Markdown and the page (``page``) share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import NamedTuple

from anomalib_defend.decision.ranking import REPLICATES

from . import papers
from .images import LEAST_NOVEL, Called
from .statistics import Difference
from .table import MEAN, Table
from .verdict import verdict

UNKNOWN, NOT_RUN = "not recorded", "not run with these settings"


class Cell(NamedTuple):
    """A cell of a table; ``strong`` is bold."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a table and sentences below it.

    Attributes:
        title: Heading.
        head: Names of the columns; none where there is nothing but sentences.
        lines: Rows, as long as ``head``.
        notes: Paragraphs.
        copied: How many of the last columns are not measured here.
    """

    title: str
    head: Sequence[str] = ()
    lines: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = ()
    copied: int = field(default=0, kw_only=True)


def about(table: Table) -> str:
    """How much is finished, and where it was measured."""
    machines = sorted({result.measured["machine"] for _, result in table.results})
    measured = f" Measured on: {' and on '.join(machines)}." if machines else ""
    return (
        f"{len(table.results)} of {len(table.outcomes)} cells are finished; one cell is model x data x category x "
        f"seed, run by anomalib's benchmark pipeline.{measured}"
    )


def sections(table: Table) -> list[Section]:
    """All tables that have something to say."""
    found = [_auroc(table), _differences(table), _called(table), _hardest(table), *_papers(table), _pixels(table)]
    return [section for section in (*found, _costs(table)) if section.lines or section.notes]


def markdown(table: Table) -> str:
    """The whole report."""
    parts = [f"# {table.comparison.title}", about(table), verdict(table)]
    absent = missing(table)
    for section in [*sections(table), *([absent] if absent.lines else [])]:
        parts.append(f"## {section.title}")
        if section.lines:
            parts.append(_markdown(section))
        parts += section.notes
    return "\n\n".join(parts) + "\n"


def _auroc(table: Table) -> Section:
    models = table.comparison.models
    lines = [
        _cells(data, category, *(_auroc_text(table, model, data, category) for model in models))
        for data, category in table.rows()
    ]
    note = (
        "Mean over seeds ± standard deviation over seeds (n - 1; none for one seed). The AUROC is that of the "
        "model's own scores, before post-processing. A mean over categories is of the seeds that all of them have."
    )
    return Section("Image AUROC", ["data", "category", *models], lines, [note, *_clamped(table)])


def _auroc_text(table: Table, model: str, data: str, category: str) -> str:
    values = table.values(model, data, category)
    if category == MEAN:
        return spread(values)
    cells = table.cells(model, data, category)
    failed = sum(outcome.error is not None for outcome in cells)
    missing = len(cells) - len(values) - failed
    texts = [spread(values), f"{failed} failed" if failed else "", f"{missing} missing" if missing else ""]
    return ", ".join(filter(None, texts))


def _clamped(table: Table) -> list[str]:
    """Where anomalib's own metric, after post-processing, is another figure."""
    worst: dict[str, float] = {}
    for outcome in table.outcomes:
        if outcome.result is not None and outcome.auroc is not None:
            deviation = outcome.result.row["image_AUROC"] - outcome.auroc
            if abs(deviation) > max(abs(worst.get(outcome.cell.model, 0)), 0.001):
                worst[outcome.cell.model] = deviation
    return [
        f"{model}: the `image_AUROC` in anomalib's CSV, taken after its post-processor has scaled and clamped the "
        f"scores, deviates by up to {deviation:+.3f}."
        for model, deviation in worst.items()
    ]


def _differences(table: Table) -> Section:
    reference = table.comparison.reference
    others = [name for name in table.comparison.models if name != reference]
    lines = []
    for data, category in table.rows():
        found = [table.difference(model, data, category) for model in others]
        if any(found):
            lines.append([*_cells(data, category), *map(_difference_cell, found)])
    note = (
        f"AUROC minus that of {reference} on the same test images of the same seed, mean over seeds, and its 95 % "
        f"interval from {REPLICATES} bootstrap replicates over the test images, drawn within normal and novel ones "
        "(for means over categories among all, an image's label not being the same in all of them). Bold: clear of "
        "zero. The chance in training is not in the interval."
    )
    if len(others) > 1:
        note += " Nor is it widened for the choice of the best of several models."
    return Section(f"Paired difference to {reference}", ["data", "category", *others], lines, [note] if lines else [])


def _difference_cell(found: Difference | str | None) -> Cell:
    if not isinstance(found, Difference):
        return Cell(found or "")
    return Cell(f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", found.clear)


def _called(table: Table) -> Section:
    """False alarms and misses at each model's threshold."""
    title, models = "False alarms and misses at the threshold", table.comparison.models
    found = {(row, model): _called_text(table, model, *row) for row in table.rows() for model in models}
    if not set(found.values()) - {"", UNKNOWN}:
        old = "Not recorded: these cells were finished by an older version, which kept scores alone."
        return Section(title, notes=[old] if table.results else [])
    lines = [_cells(*row, *(found[row, model] for model in models)) for row in table.rows()]
    note = (
        "Normal images that are called novel, and novel ones that are not, at the threshold that each model has set "
        "for itself: this package's models from normal validation images, for `target_fpr`. All seeds together; a mean "
        "over categories is that of their rates."
    )
    return Section(title, ["data", "category", *models], lines, [note])


def _called_text(table: Table, model: str, data: str, category: str) -> str:
    if not table.finished(model, data, category):
        return ""
    if category != MEAN:
        one = table.called(model, data, category)
        return (
            UNKNOWN
            if one is None
            else ", ".join(
                f"{share:.1%} ({part} of {whole})".replace("%", " %")
                for share, part, whole in zip(
                    _rates(one), (one.alarms, one.misses), (one.normal, one.novel), strict=True
                )
            )
        )
    found = [table.called(model, data, name) for name in table.categories(data)]
    known = [_rates(one) for one in found if one is not None]
    if len(known) < len(found):
        return ""
    return ", ".join(f"{mean(rates):.1%}".replace("%", " %") for rates in zip(*known, strict=True))


def _rates(one: Called) -> tuple[float, float]:
    return one.alarms / one.normal, one.misses / one.novel


def _hardest(table: Table) -> Section:
    """The novel class that is hardest to tell from each category."""
    models = table.comparison.models
    lines = []
    for data, category in table.rows():
        texts = [_hardest_text(table, model, data, category) for model in models]
        if any(texts):
            lines.append(_cells(data, category, *texts))
    note = (
        "The novel class against which the image AUROC, mean over seeds, is lowest, and that AUROC: a category that at "
        f"least {LEAST_NOVEL} novel test images show, perhaps beside others"
    )
    by_folder = [name for name in table.comparison.by_novel_class if name in table.comparison.data]
    note += f"; of {', '.join(by_folder)} a folder of images." if by_folder else "."
    if not lines:
        note = "Not known: the data name no categories, or the cells were finished by an older version."
    return Section("Hardest novel class", ["data", "category", *models], lines, [note] if table.results else [])


def _hardest_text(table: Table, model: str, data: str, category: str) -> str:
    if category != MEAN:
        found = table.hardest(model, data, category)
        return "" if found is None else f"{found.name} {found.auroc:.3f}"
    rows = [table.hardest(model, data, name) for name in table.categories(data)]
    known = [found.auroc for found in rows if found is not None]
    return f"{mean(known):.3f}" if len(known) == len(rows) else ""


def _papers(table: Table) -> list[Section]:
    """The papers' own figures beside ours, one table for each data that a paper has."""
    found = []
    for data, methods in table.papers.items():
        by_class = data in table.comparison.by_novel_class
        rows = [row for row in (*table.categories(data), MEAN) if any(row in figures for figures in methods.values())]
        own = _hardest_text if by_class else _auroc_text
        lines = [
            _cells(
                row,
                *(own(table, model, data, row) for model in table.comparison.models),
                *(f"{figures[row]:.3f}" if row in figures else "" for figures in methods.values()),
            )
            for row in rows
        ]
        note = (
            "The columns marked “(paper)” are copied from the papers, not measured here: on all images, with the "
            "encoders and in the ways that are named below. Their mean is over all categories of the data set, ours "
            "over those that were run."
        )
        head = ["category", *table.comparison.models, *(f"{method} (paper)" for method in methods)]
        what = f"{data}: {papers.LABEL}" + (", hardest novel class" if by_class else "")
        if lines:
            notes = [note, *papers.notes(table.comparison.papers[data])]
            found.append(Section(what, head, lines, notes, copied=len(methods)))
    return found


def _pixels(table: Table) -> Section:
    models = table.comparison.models
    lines = []
    for data, category in table.rows():
        texts = []
        for model in models if category != MEAN else ():
            rows = [result.row for result in table.finished(model, data, category)]
            texts.append(spread([row["pixel_AUROC"] for row in rows if row.get("pixel_AUROC") is not None]))
        if any(texts):
            lines.append(_cells(data, category, *texts))
    return Section("Pixel AUROC", ["data", "category", *models], lines)


def _costs(table: Table) -> Section:
    lines = []
    for data in table.comparison.data:
        for model in table.comparison.models:
            cost = table.cost(model, data)
            if cost is not None:
                texts = (f"{cost.seconds:.0f} s", f"{cost.images_per_second:.1f}", f"{cost.parameters / 1e6:.1f} M")
                lines.append(_cells(data, model, *texts, f"{cost.memory_gb:.1f} GB", f"{cost.auroc:.3f}"))
    note = (
        "Means over categories and seeds; the memory is the largest. Training is the pipeline's fit with its "
        "validation, without the test; images/s are those of the test with reading the files."
    )
    head = ["data", "model", "training", "test images/s", "parameters", "peak memory", "AUROC of these cells"]
    return Section("Cost", head, lines, [note] if lines else [])


def missing(table: Table) -> Section:
    """Cells without result."""
    lines = [
        _cells(cell.model, cell.data, cell.category, str(cell.seed), f"failed, {error}" if error else NOT_RUN)
        for cell, error in ((outcome.cell, outcome.error) for outcome in table.outcomes if outcome.result is None)
    ]
    return Section("Failed and missing cells", ["model", "data", "category", "seed", "why"], lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _cells(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def _markdown(section: Section) -> str:
    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(text.replace("|", "\\|").splitlines()) for text in texts) + " |"

    lines = [[f"**{cell.text}**" if cell.strong else cell.text for cell in cells] for cells in section.lines]
    return "\n".join(map(line, [section.head, ["---"] * len(section.head), *lines]))
