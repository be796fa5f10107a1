"""Times of contenders that take turns, and the memory that a call takes."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.benchmark.machine import status_mib

if TYPE_CHECKING:
    from collections.abc import Callable

Times = dict[str, list[float]]
"""Seconds of each round, by contender."""


def alternate(
    contenders: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Call all contenders once unmeasured, then in turns, so that what slows the machine down slows all of them."""
    for call in contenders.values():
        call()
    times: Times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return times


def speedup(times: Times, slow: str, fast: str) -> float:
    """How many times as fast one contender is as another: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of a module in a process of its own, which starts with nothing in memory.

    Raises:
        BrokenProcessPool: If the process dies.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def peak_mib(call: Callable[[], object]) -> float:
    """Memory that a call takes beyond what the process held before it, at its highest, in MiB (Linux).

    Best in a fresh process: memory that was freed before may be taken again unseen, unless the C library gives it back.
    ``ru_maxrss`` would not do: a started process inherits it.
    """
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # glibc
    give_back(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status_mib("VmRSS")
    call()
    return status_mib("VmHWM") - before
