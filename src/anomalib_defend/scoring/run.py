"""What ``anomalib-defend score`` does."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from anomalib_defend.data.file_names import to_text
from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.calibration import calibration_path
from anomalib_defend.decision.conformal import check_share
from anomalib_defend.decision.models import Checkpoint, Export, open_model
from anomalib_defend.post_processing.description import Run, description_path

from .finish import check_format, write_table
from .inputs import Inputs
from .journal import Entry, Journal, refuse_other, write_json
from .pipeline import Scorer, score_rows
from .tally import Tally
from .validity import LEVELS, counted, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_defend.decision.calibration import Calibration

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
) -> int:
    """Score images, and write the table of results; a run that was killed goes on.

    Args:
        model: An OpenVINO export (.xml), a checkpoint (.ckpt), or a folder with one export.
        paths: Folders, images, globs, lists of paths (.txt), or "-" for a list on standard input.
        out: The table, .csv or .parquet.
        target_fpr: Share of new normal images that may be called novel; the model's own by default.
        target_fdr: Mark the images, in a last column ``selected``, of which a share of at most this is expected to be
            normal.
        hint: OpenVINO's precision (f32, bf16), as it was calibrated in; its own default if None.
        maps: Folder of a picture of each image.

    Returns:
        The exit status: 0, or 3 if there are images with an error.

    Raises:
        FileExistsError: If there is another table.
        FileNotFoundError: If there is no such model, or no such image.
        ValueError: If an argument does not fit, or a run that was begun was another.
    """
    shares = {"target_fpr": target_fpr, "target_fdr": target_fdr}
    check_share(**{name: value for name, value in shares.items() if value is not None})
    check_format(out)
    inputs = Inputs(paths)
    opened = open_model(model)
    calibration = _calibration(opened, target_fpr, needed="target_fpr" if target_fpr else target_fdr and "target_fdr")
    settings = {
        "model": _digest(opened.path),
        "paths": [path if path == "-" else str(Path(path).absolute()) for path in paths],
        **shares,
        "hint": hint,
        "maps": None if maps is None else str(maps.absolute()),
    }
    settings = json.loads(json.dumps(settings))  # as they are read back
    description = description_path(out)
    tally = Tally(calibration)
    if _is_complete(out, description, settings):
        failed = json.loads(description.read_text(encoding="utf-8"))["images"]["errors"]
        print(f"{to_text(str(out))} is complete: remove it to score the images again.")
        return SOME_FAILED if failed else 0
    started = Run()
    with Journal(out, settings) as journal:
        remaining = iter(inputs)
        for entry in journal.resume(remaining):
            tally.add(entry)
        if tally.images:
            print(f"Going on after {tally.images} images of {to_text(str(journal.path))}.", flush=True)
        scorer = _scorer(opened, calibration, hint, maps is not None)
        bar = tqdm(desc="Scoring", unit=" images", initial=tally.images, smoothing=0.05, disable=None)
        _count(paths, inputs, bar)
        with bar, closing(score_rows(remaining, scorer)) as batches:
            for rows in batches:
                entries = [Entry(row) for row in rows]
                journal.append(entries)
                for entry in entries:
                    tally.add(entry)
                bar.update(len(rows))
        rank = None if target_fdr is None else tally.selects(target_fdr)
        content = started.content()
        content["model"], content["checkpoint"] = type(opened).__name__, str(opened.path)
        content["calibration"] = None if calibration is None else calibration.content()
        content["images"] = {"scored": tally.images - tally.errors, "errors": tally.errors, "novel": tally.novel}
        write_json(description, {**content, "settings": settings})
        write_table(journal, out, None if rank is None else lambda value: tally.is_selected(value, rank))
        journal.remove()
    print(_outcome(tally, inputs, content["seconds"]))
    if calibration is not None:
        counts = [counted(level, tally.at_most(level), tally.p_values, calibration.count) for level in LEVELS]
        known = [count for count in counts if count is not None]
        if known:
            print(sentence(known, opened.path))
    print(f"Written: {to_text(str(out))}")
    return SOME_FAILED if tally.errors else 0


def _calibration(opened: Checkpoint | Export, target_fpr: float | None, needed: Any) -> Calibration | None:
    """What the scores mean, for another rate if it is given."""
    try:
        calibration = opened.calibration()
    except (FileNotFoundError, ValueError) as error:
        if needed:
            raise
        print(f"Without p-values: {error}", flush=True)
        return None
    return calibration if target_fpr is None else calibration.moved(target_fpr)


def _scorer(opened: Checkpoint | Export, calibration: Calibration | None, hint: str | None, maps: bool) -> Scorer:
    if isinstance(opened, Export):
        from .exported import ExportedScorer  # noqa: PLC0415 - optional extra

        return ExportedScorer(opened, calibration, hint, maps=maps, parallel=usable_cores())
    if hint is not None:
        msg = f"hint={hint!r} is of OpenVINO: give its .xml file."
        raise ValueError(msg)
    from .checkpoint import CheckpointScorer  # noqa: PLC0415 - as above

    return CheckpointScorer(opened.load(), calibration)


def _digest(model: Path) -> str:
    """A number of what a model's files hold."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (model, model.with_suffix(".bin"), calibration_path(model)):
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _is_complete(out: Path, description: Path, settings: dict[str, Any]) -> bool:
    """Whether the table is there already, made with the same settings.

    Raises:
        FileExistsError: If another one is, or another file in its description's place.
    """
    if not out.exists() and not description.exists():
        return False
    try:
        begun = json.loads(description.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        there = out if out.exists() else description
        msg = f"{to_text(str(there))} is there, and not of this command: remove it, or give another --out."
        raise FileExistsError(msg) from None
    if out.exists():
        refuse_other(begun, settings, f"{to_text(str(out))} was made", "remove it to score anew")
    return out.exists()


def _count(paths: Sequence[str], inputs: Inputs, bar: Any) -> None:
    """Tell the bar how many images there are, once they are counted."""

    def count() -> None:
        bar.total = sum(1 for _ in Inputs(paths))

    if inputs.countable and not bar.disable:
        threading.Thread(target=count, daemon=True).start()


def _outcome(tally: Tally, inputs: Inputs, seconds: float) -> str:
    words = [f"{tally.images} images in {seconds:.0f} s: {tally.novel} novel, {tally.errors} with an error."]
    if tally.errors:
        words.append("The column error says why.")
    if inputs.other_formats:
        formats = ", ".join(f"{number} {suffix}" for suffix, number in sorted(inputs.other_formats.items()))
        words.append(f"Not looked at, since anomalib does not read their format: {formats}.")
    return " ".join(words)
