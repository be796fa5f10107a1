"""What ``anomalib-defend score`` does."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.conformal import check_share
from anomalib_defend.files.names import to_text
from anomalib_defend.post_processing.description import Run, description_path

from .finish import check_format, write_table
from .inputs import STDIN, Inputs
from .journal import Journal, refuse_other, remove_journal, write_json
from .models import MEASURED, Model, digest
from .pipeline import score_rows
from .remote import is_address
from .sample import Sample
from .tally import Tally
from .validity import answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .pipeline import Judged

SOME_FAILED = 3  # 1 is an error that ended the run, 2 a wrong command line


def score(
    model: Path,
    paths: Sequence[str],
    out: Path,
    *,
    target_fpr: float | None = None,
    target_fdr: float | None = None,
    hint: str | None = None,
    maps: Path | None = None,
    first_view: Path | None = None,
) -> int:
    """Score images, and write the table of results; a run that was killed goes on.

    Args:
        model: An OpenVINO export (.xml), a checkpoint (.ckpt), or a folder with one export.
        paths: Folders, images, addresses of either (``s3://...``), globs, lists of paths (.txt), or "-" for a list on
            standard input.
        out: The table, .csv or .parquet.
        target_fpr: Share of new normal images that may be called novel; the model's own by default.
        target_fdr: Mark the images, in a last column ``selected``, of which a share of at most this is expected to be
            normal.
        hint: OpenVINO's precision (f32, bf16), as it was calibrated in; its own default if None.
        maps: Folder of a picture of each image.
        first_view: An export of the first view alone of ``model``; for a checkpoint, the checkpoint itself. Images that
            it makes normal are not looked at any further; a column ``upper_bound`` says which.

    Returns:
        The exit status: 0, or 3 if there are images with an error.

    Raises:
        FileExistsError: If there is another table.
        FileNotFoundError: If there is no such model, or no such image.
        ValueError: If an argument does not fit, or a run that was begun was another.
    """
    check_format(out)
    shares = {"target_fpr": target_fpr, "target_fdr": target_fdr}
    check_share(**{name: value for name, value in shares.items() if value is not None})
    if maps is not None and first_view is not None:
        msg = "--maps and --first-view: a picture shows all views. Leave one of them out."
        raise ValueError(msg)
    inputs = Inputs(paths, maps)
    opened = Model(model, first_view, target_fpr, hint, usable_cores())
    if opened.calibration is None and target_fdr is not None:
        msg = f"--target-fdr needs p-values. {opened.missing}"
        raise ValueError(msg)
    settings = {
        "table": to_text(out.name),
        "model": digest(opened.path),
        "paths": paths_of(paths),
        "working_directory": to_text(str(Path.cwd())) if inputs.has_list else None,
        **shares,
        "hint": hint,
        "maps": None if maps is None else to_text(str(maps.absolute())),
        "first_view": digest(opened.first_view),
    }
    if _is_complete(out, settings):
        remove_journal(out)  # a kill has left it, and once the table is removed, its rows would be taken for it
        print(f"{to_text(str(out))} is complete: remove it to score the images again.")
        return SOME_FAILED if _description(out)["images"]["errors"] else 0
    return _Scoring(opened, inputs, out, settings, maps).run()


class _Scoring:
    """A run, once all is checked."""

    def __init__(self, model: Model, inputs: Inputs, out: Path, settings: dict[str, Any], maps: Path | None) -> None:
        self.model, self.inputs, self.out, self.settings, self.maps = model, inputs, out, settings, maps
        self.target_fdr: float | None = settings["target_fdr"]
        self.calibration = model.calibration
        self.tally, self.sample, self.started = Tally(model.calibration), Sample(), Run()
        self.stops_early = model.first_view is not None
        self._in_full: list[float] | None = None
        if self.calibration is not None and (self.target_fdr or 0) > self.calibration.target_fpr and self.stops_early:
            print(
                f"All views of all images are computed: --target-fdr {self.target_fdr:g} selects by p-values above "
                f"target_fpr={self.calibration.target_fpr:g}, which the first view alone does not tell."
            )
            self.stops_early = False

    def run(self) -> int:
        paths = iter(self.inputs)
        first = list(islice(paths, MEASURED if self.model.coarse else 1))
        if not first:
            raise self.inputs.no_image()
        if self.model.missing:
            print(f"Without p-values: {self.model.missing}", flush=True)
        # before anything is on disk: what a wrong option leaves there would refuse the right one
        rounding = self.model.rounding(first)
        self.tally = Tally(self.calibration, coarse=self.model.coarse, rounding=rounding)
        if self.stops_early:
            judge: Judged = self.model.first_view_judge(rounding)
        else:
            judge = self.model.judge(self.maps, self.out.parent)
        with Journal(self.out, self.settings, bounds=self.stops_early) as journal:
            self._score(journal, judge, chain(first, paths))
            told = list(self._told())  # scores a sample in full: killed there, the run is not complete
            self._write(journal)
        for line in told:
            print(line)
        return SOME_FAILED if self.tally.errors else 0

    def _score(self, journal: Journal, judge: Judged, remaining: Iterator[str]) -> None:
        for entry in journal.resume(remaining):
            self.tally.add(entry)
            self.sample.add(entry)
        if self.tally.images:
            print(f"Going on after {self.tally.images} images of {to_text(str(journal.path))}.", flush=True)
        bar = tqdm(desc="Scoring", unit=" images", initial=self.tally.images, smoothing=0.05, disable=None)
        self._count(bar)
        with bar, closing(score_rows(remaining, judge)) as batches:
            for entries in batches:
                journal.append(entries)
                for entry in entries:
                    self.tally.add(entry)
                    self.sample.add(entry)
                bar.update(len(entries))

    def _count(self, bar: Any) -> None:
        """Tell the bar how many images there are, once they are counted."""

        def count() -> None:
            bar.total = sum(1 for _ in Inputs(self.inputs.arguments, self.maps))

        if self.inputs.countable and not bar.disable:
            threading.Thread(target=count, daemon=True).start()

    def _write(self, journal: Journal) -> None:
        tally = self.tally
        content = {**self.started.content(), **self.model.content(), "images": tally.content()}
        write_json(description_path(self.out), {**content, "settings": self.settings})
        rank = None if self.target_fdr is None else tally.selects(self.target_fdr)
        write_table(journal, self.out, None if rank is None else lambda value: tally.is_selected(value, rank))
        journal.remove()

    def _told(self) -> Iterator[str]:
        """What is said of all images."""
        tally = self.tally
        yield from tally.told(self.started.content()["seconds"], self.inputs.other_formats)
        if self.stops_early and tally.p_values:
            share = 100 * tally.stopped / tally.p_values
            yield f"The first view alone decided {tally.stopped} of {tally.p_values} images ({share:.0f} %)."
        if self.calibration is not None:
            yield from filter(None, [answer(self._at_most, self.calibration.count, self.model.path)])
        yield f"Written: {to_text(str(self.out))}"

    def _at_most(self, level: float) -> tuple[int, int]:
        """How many p-values are at most ``level``, and of how many; of a sample where some are lower bounds."""
        assert self.calibration is not None  # noqa: S101 - there are p-values
        if not self.stops_early or level <= self.calibration.target_fpr:
            return self.tally.at_most(level), self.tally.p_values
        if self._in_full is None:
            self._in_full = self._p_values_in_full()
        values = self._in_full
        return sum(value <= level + 1e-9 for value in values), len(values)

    def _p_values_in_full(self) -> list[float]:
        """The p-values of a random sample of the images, with all views."""
        entries = self.sample.entries()
        stopped = [entry.row.path for entry in entries if entry.upper_bound]
        with closing(score_rows(stopped, self.model.judge(None, self.out.parent))) as batches:
            computed = [entry for batch in batches for entry in batch]
        known = [entry for entry in entries if not entry.upper_bound]
        return [entry.row.p_value for entry in known + computed if entry.row.p_value is not None]


def paths_of(arguments: Sequence[str]) -> list[str]:
    """The images of a run, whatever its working directory."""
    return [path if path == STDIN or is_address(path) else to_text(str(Path(path).absolute())) for path in arguments]


def _description(out: Path) -> dict[str, Any]:
    return json.loads(description_path(out).read_text(encoding="utf-8"))


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the table is there already, made with the same settings.

    Raises:
        FileExistsError: If another one is, or another file in its description's place.
        ValueError: If it was made with other settings.
    """
    description = description_path(out)
    if not out.exists() and not description.exists():
        return False
    try:
        begun = _description(out)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        there = out if out.exists() else description
        msg = f"{to_text(str(there))} is there, and not of this command: remove it, or give another --out."
        raise FileExistsError(msg) from None
    if begun.get("table") != settings["table"] and out.with_name(str(begun.get("table"))).exists():
        msg = f"{to_text(str(description))} is there, and describes {begun.get('table')}: give another --out."
        raise FileExistsError(msg)
    if out.exists():
        refuse_other(begun, settings, f"{to_text(str(out))} was made", "remove it to score anew")
    return out.exists()
