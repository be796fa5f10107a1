"""Scoring with Ray on this machine, and how fast it is once all of it runs."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from anomalib_defend.data.workers import usable_cores
from anomalib_defend.scoring.cluster import score_on_ray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

STEADY = (0.3, 0.9)
"""Of the images: before, actors start; after, they end one by one."""


class Rate(NamedTuple):
    """Of scoring, once all of it runs."""

    images: float
    """A second."""
    cpu: float
    """Seconds of all processes, an image."""


def cpu_seconds() -> float:
    """Of this process, and of all that it has started and that still run."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def actor_memory() -> int:
    """Bytes of the largest of Ray's processes that score, as yet."""
    sizes = [0]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                sizes.append(process.memory_info().rss)
    return max(sizes)


def scored(out: Path) -> int:
    """How many images are in finished partitions, as yet."""
    from pyarrow import parquet  # noqa: PLC0415 - optional extra

    return sum(parquet.read_metadata(path).num_rows for path in out.glob("*.parquet"))


def watch(out: Path, seen: list[tuple[int, float, float]], sizes: list[int], stop: threading.Event) -> None:
    """Note how many images are scored, when, in how much CPU time, and how large an actor is."""
    while not stop.wait(0.2):
        found = scored(out)
        if not seen or found > seen[-1][0]:
            seen.append((found, time.perf_counter(), cpu_seconds()))
            sizes.append(actor_memory())


def on_ray(xml: Path, paths: Sequence[Path], out: Path, address: str, meanwhile: Callable[..., None]) -> Any:
    """Score with ``--engine ray``, and return the rows."""
    from pyarrow import parquet  # noqa: PLC0415 - optional extra

    stop = threading.Event()
    thread = threading.Thread(target=meanwhile, args=(stop,))
    thread.start()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            score_on_ray(xml, [str(paths[0].parent)], str(out), address=address)
    finally:
        stop.set()
        thread.join()
    return parquet.read_table(out).to_pylist()


def ray_rate(xml: Path, paths: Sequence[Path], out: Path, sizes: list[int]) -> Rate:
    """Of one node with all cores; adds the sizes of its actors."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - optional extra

    seen: list[tuple[int, float, float]] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": usable_cores()})
    try:
        on_ray(xml, paths, out, cluster.address, lambda stop: watch(out, seen, sizes, stop))
    finally:
        cluster.shutdown()
    first, last = (next(item for item in seen if item[0] >= share * len(paths)) for share in STEADY)
    images = last[0] - first[0]
    return Rate(images / (last[1] - first[1]), (last[2] - first[2]) / images)
