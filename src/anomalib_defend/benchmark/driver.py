"""Run the cells that are missing, each by anomalib's benchmark pipeline in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, cast

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .budget import Budget, clock
from .build import Size
from .cell import JOB, LOG
from .cell import run as run_job
from .plan import Cell, Comparison, ComparisonError
from .results import ERROR, Result, ResultError, finish, read_result

RUN = run_job
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
    display = _Display(budget, sizes, pilots, rest, jobs, echo)
    with _alone(folder), display:
        return _run_all([*pilots, *rest], sizes, folder, jobs, threads, display)


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
        pilots: list[Cell],
        rest: list[Cell],
        jobs: int,
        echo: Echo,
        console: Console | None = None,
    ) -> None:
        self._budget, self._sizes, self._jobs = budget, sizes, jobs
        self._pilots, self._left = list(pilots), [*pilots, *rest]
        self._total = len(self._left)
        self._done = 0
        console = console or Console()
        self._progress = None
        self.echo = echo
        if console.is_terminal:
            columns = (TextColumn("cells"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[left]}"), console=console, expand=True)
            self._task = self._progress.add_task("cells", total=self._total, left="")
            # one line each, cut where the terminal ends; errors are told in full at the end
            self.echo = partial(console.print, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")

    def __enter__(self) -> None:
        if self._progress:
            self._progress.start()

    def __exit__(self, *_error: object) -> None:
        if self._progress:
            self._progress.stop()

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
        if cell in self._pilots:
            self._pilots.remove(cell)
            if self._left and not self._pilots:
                _tell(self._budget, self._left, self._sizes, self._jobs, self.echo)


class _Running(NamedTuple):
    """A cell at work."""

    cell: Cell
    slot: int
    start: float
    process: BaseProcess


def _run_all(
    cells: list[Cell], sizes: Mapping[str, Size], folder: Path, jobs: int, threads: int, display: _Display
) -> dict[str, str]:
    """Run cells side by side; returns the errors."""
    waiting, free = deque(cells), list(range(jobs))
    running: dict[int, _Running] = {}  # by what becomes ready when the process ends
    errors = {}

    def end(cell: Cell, outcome: Result | str) -> None:
        if isinstance(outcome, str):
            errors[str(cell)] = outcome
            with suppress(OSError):
                text = f"{cell.key}\n{outcome}\n"
                (folder / cell.folder / ERROR).write_text(text, encoding="utf-8", errors="backslashreplace")
        display.end(cell, outcome)

    try:
        while waiting or running:
            while waiting and free:
                cell, slot, start = waiting.popleft(), free.pop(), time.perf_counter()
                try:
                    process = _start(cell, folder / cell.folder, threads, slot)
                except OSError as error:  # a full disk, for instance, ends this cell alone
                    free.append(slot)
                    end(cell, str(error))
                else:
                    running[process.sentinel] = _Running(cell, slot, start, process)
            for ended in connection.wait(list(running)) if running else ():
                cell, slot, start, process = running.pop(cast(int, ended))
                process.join()
                free.append(slot)
                end(cell, _outcome(cell, folder / cell.folder, process.exitcode, time.perf_counter() - start, sizes))
    finally:  # interrupted: nothing goes on
        for _, _, _, process in running.values():
            process.kill()
    return errors


def _start(cell: Cell, folder: Path, threads: int, slot: int) -> BaseProcess:
    """Start one cell in an emptied folder: forked, where that is safe, from a process that has imported everything."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / JOB).write_text(yaml.safe_dump(cell.job, sort_keys=False))
    environment = _environment(cell, threads, slot)
    process = _context(cell.accelerator).Process(target=RUN, args=(folder, environment, threads))
    own = dict(os.environ)
    try:  # threads and warnings are settled by the imports
        os.environ.update(environment)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(own)
    return process


def _context(accelerator: str) -> ForkServerContext | SpawnContext:
    if sys.platform != "linux" or accelerator == "cuda":  # whatever an import asks a GPU, a fork could not ask again
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_job.__module__])
    return context


def _outcome(cell: Cell, folder: Path, status: int | None, seconds: float, sizes: Mapping[str, Size]) -> Result | str:
    """The checked result of a cell that has ended, or the last line of its error."""
    try:
        if status == 0:
            return finish(folder, cell, seconds, vars(sizes[cell.key]))
        return f"the process was ended by signal {-status}" if status and status < 0 else _last_line(folder / LOG)
    except (ResultError, OSError) as error:
        return str(error)


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
