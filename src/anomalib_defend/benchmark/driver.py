"""Run the cells that are missing, each by anomalib's benchmark pipeline in a process of its own."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .budget import Budget, clock
from .build import Size
from .cell import JOB
from .plan import Cell, Comparison, ComparisonError
from .results import ERROR, LOG, Result, ResultError, finish, read_result

COMMAND = [sys.executable, "-m", f"{__package__}.cell"]
_QUIET = {"enable_progress_bar": False, "enable_model_summary": False}

Echo = Callable[[str], None]
"""Takes the lines of output."""

_print: Echo = partial(print, flush=True)


def show_plan(comparison: Comparison, folder: Path, jobs: int = 1, echo: Echo = _print) -> None:
    """Say what would run, and how long it would take by the cells in ``folder``; needs no images, weights or GPU."""
    missing, budget = _missing(comparison, folder)
    echo(f"{comparison.name}: {len(comparison.cells)} cells, {len(comparison.cells) - len(missing)} finished.")
    for cell in missing:
        echo(f"  {cell}")
    if missing:
        _tell(budget, missing, {}, jobs, echo)


def run_missing(
    comparison: Comparison,
    sizes: Mapping[str, Size],
    folder: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    echo: Echo = _print,
) -> dict[str, str]:
    """Run what is missing in ``folder``; finished cells stay, failed ones are tried again.

    Args:
        comparison: What to run.
        sizes: Of each cell, by key, as ``check`` returns them.
        folder: The results, one folder a cell.
        jobs: Number of cells side by side.
        threads: torch threads of each cell.
        echo: Takes the lines of output.

    Returns:
        The last line of the error of each failed cell.

    Raises:
        ComparisonError: If another run is working in ``folder``.
    """
    missing, budget = _missing(comparison, folder)
    pilots = budget.unknown(missing, sizes)
    echo(f"{comparison.name}: {len(comparison.cells)} cells, {len(comparison.cells) - len(missing)} finished.")
    if not missing:
        return {}
    if pilots:
        echo(
            f"Nothing has been measured of {len(pilots)} model setting(s): the cheapest cell of each comes first, "
            "and the time of the others follows from them."
        )
        for cell in pilots:
            echo(f"  {cell}")
    else:
        _tell(budget, missing, sizes, jobs, echo)
    folder.mkdir(parents=True, exist_ok=True)
    rest = [cell for cell in missing if cell not in pilots]
    display = _Display(budget, sizes, len(missing), jobs, echo)
    with _alone(folder), display:
        failed = _run_all(pilots, sizes, folder, jobs, threads, display)
        if pilots and rest:
            _tell(budget, rest, sizes, jobs, display.echo)
        failed |= _run_all(rest, sizes, folder, jobs, threads, display)
    return failed


def _missing(comparison: Comparison, folder: Path) -> tuple[list[Cell], Budget]:
    """The cells that are to be run, one seed after the other, and what the finished ones say about their time."""
    results = {cell.key: read_result(folder / cell.folder, cell) for cell in comparison.cells}
    budget = Budget((cell, result) for cell in comparison.cells if (result := results[cell.key]) is not None)
    missing = [cell for cell in comparison.cells if results[cell.key] is None]
    seeds = list(dict.fromkeys(cell.seed for cell in comparison.cells))
    return sorted(missing, key=lambda cell: seeds.index(cell.seed)), budget


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs would empty each other's cells; the lock ends with the process."""
    try:
        import fcntl  # noqa: PLC0415
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = f"another run is working in {folder}: wait for it, or name another folder with --results."
            raise ComparisonError(msg) from error
        yield


def _tell(budget: Budget, cells: list[Cell], sizes: Mapping[str, Size], jobs: int, echo: Echo) -> None:
    echo(f"Time budget of {len(cells)} cells:")
    for line in budget.table(cells, sizes):
        echo(line)
    known = [cell for cell in cells if budget.estimate(cell, sizes.get(cell.key)) is not None]
    seconds = budget.seconds(known, sizes) or 0
    unknown = f"{len(cells) - len(known)} cell(s) not measured yet" if len(known) < len(cells) else ""
    together = f"Together {clock(seconds / jobs)} with --jobs {jobs}" if known else ""
    echo(f"{', and '.join(filter(None, (together, unknown)))}.")


class _Display:
    """One progress bar for all cells on a terminal, one line for each elsewhere."""

    def __init__(
        self,
        budget: Budget,
        sizes: Mapping[str, Size],
        total: int,
        jobs: int,
        echo: Echo,
        console: Console | None = None,
    ) -> None:
        self._budget, self._sizes, self._total, self._jobs = budget, sizes, total, jobs
        self._left: list[Cell] = []
        self._done = 0
        console = console or Console()
        self._progress = None
        self.echo = echo
        if console.is_terminal:
            columns = (TextColumn("cells"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[left]}"), console=console, expand=True)
            self._task = self._progress.add_task("cells", total=total, left="")
            # one line each, cut where the terminal ends; errors are told in full at the end
            self.echo = partial(console.print, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")

    def __enter__(self) -> None:
        if self._progress:
            self._progress.start()

    def __exit__(self, *_error: object) -> None:
        if self._progress:
            self._progress.stop()

    def begin(self, cells: list[Cell]) -> None:
        """Take cells in."""
        self._left += cells

    def end(self, cell: Cell, outcome: Result | str) -> None:
        """Show one cell's outcome and the time that is left."""
        self._done += 1
        self._left.remove(cell)
        text = f"failed: {outcome}"
        if isinstance(outcome, Result):
            self._budget.add(cell, outcome)
            text = f"image AUROC {outcome.row['image_AUROC']:.4f}, {clock(outcome.seconds)}"
        seconds = self._budget.seconds(self._left, self._sizes)
        left = "" if seconds is None or not self._left else f"{clock(seconds / self._jobs)} left"
        self.echo(f"[{self._done}/{self._total}] {cell}: {text}{', ' if left else ''}{left}")
        if self._progress:
            self._progress.update(self._task, advance=1, left=left)


def _run_all(
    cells: list[Cell], sizes: Mapping[str, Size], folder: Path, jobs: int, threads: int, display: _Display
) -> dict[str, str]:
    """Run cells side by side; returns the errors."""
    display.begin(cells)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    running: dict[int, subprocess.Popen[bytes]] = {}
    errors = {}
    executor = ThreadPoolExecutor(jobs)
    futures: dict[Future[Result | str], Cell] = {
        executor.submit(_run_cell, cell, sizes[cell.key], folder / cell.folder, threads, slots, running): cell
        for cell in cells
    }
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                if isinstance(outcome, str):
                    errors[str(futures[future])] = outcome
                display.end(futures[future], outcome)
    finally:  # interrupted: nothing goes on
        executor.shutdown(wait=False, cancel_futures=True)
        for process in list(running.values()):
            process.kill()
    return errors


def _run_cell(
    cell: Cell,
    size: Size,
    folder: Path,
    threads: int,
    slots: queue.SimpleQueue[int],
    running: dict[int, subprocess.Popen[bytes]],
) -> Result | str:
    """Run one cell in an emptied folder; returns its checked result, or the last line of its error."""
    slot = slots.get()
    start = time.perf_counter()
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / JOB).write_text(yaml.safe_dump(cell.job, sort_keys=False))
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - this package's own module
                COMMAND,
                cwd=folder,
                env=_environment(cell, threads, slot),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running[slot] = process
            status = process.wait()
        if status == 0:
            return finish(folder, cell, time.perf_counter() - start, vars(size))
        error = _last_line(folder / LOG) if status > 0 else f"the process was ended by signal {-status}"
    except (ResultError, OSError) as caught:  # a full disk, for instance, ends this cell alone
        error = str(caught)
    finally:
        running.pop(slot, None)
        slots.put(slot)
    with suppress(OSError):
        (folder / ERROR).write_text(f"{cell.key}\n{error}\n", encoding="utf-8", errors="backslashreplace")
    return error


def _environment(cell: Cell, threads: int, slot: int) -> dict[str, str]:
    """Threads, one device for each cell side by side, and Lightning's trainer, which reads PL_TRAINER_* as defaults."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    environment.setdefault("PYTHONWARNINGS", "ignore")  # anomalib's own imports
    environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    environment.update({f"PL_TRAINER_{name.upper()}": str(value) for name, value in {**_QUIET, **cell.trainer}.items()})
    if cell.accelerator == "cuda":
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"
