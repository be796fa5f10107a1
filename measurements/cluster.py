"""A Ray cluster of three nodes on this machine scores files, and one of them is killed in the middle.

``python -m measurements.cluster`` writes 1,000 JPEG files of 375 x 500 pixels, scores them with `DN2` of random weights
on the single machine and with ``--engine ray``, and prints what is lost, what is there twice, how far scores are apart,
and how many images each scores with a core, in turns and in CPU time: starting and compiling are not counted. What
``python -m measurements.billion`` asks for is printed last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch

from anomalib_defend.benchmark.machine import describe
from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.models import Export
from anomalib_defend.scoring.cluster import import_ray, score_on_ray
from anomalib_defend.scoring.exported import ExportedScorer
from anomalib_defend.scoring.judges import Judge
from anomalib_defend.scoring.run import score

from .scoring import make_model, make_photographs, measured, run_judge
from .speed.report import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BACKBONE = "deit_tiny_patch16_224"
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


def killed(xml: Path, paths: Sequence[Path], out: Path) -> tuple[Any, str]:
    """The rows of three nodes of which one is killed once a third of the images are scored, and what happened."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - optional extra

    told: list[str] = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill(stop: threading.Event) -> None:
        while not stop.wait(0.05):
            if scored(out) >= len(paths) / 3:
                cluster.remove_node(nodes[0], allow_graceful=False)
                told.append(f"one of three nodes killed after {scored(out)} of {len(paths)} images")
                return

    try:
        rows = on_ray(xml, paths, out, cluster.address, kill)
    finally:
        cluster.shutdown()
    return rows, told[0]


def compare(rows: Any, expected: Any) -> list[dict[str, object]]:
    """What is lost, what is there twice, and how far scores are apart."""
    scores = {row["path"]: row["raw_score"] for row in expected}
    counts = Counter(row["path"] for row in rows)
    pairs = list(zip(rows, expected, strict=False))
    found = {
        "rows lost": len(scores.keys() - counts.keys()),
        "rows twice": sum(count > 1 for count in counts.values()),
        "rows in another place": sum(row["path"] != other["path"] for row, other in pairs),
        "labels that differ": sum(row["label"] != other["label"] for row, other in pairs),
        "largest difference of raw scores": max(abs(row["raw_score"] - scores[row["path"]]) for row in rows),
        "largest raw score": max(scores.values()),
    }
    return [{"": name, "found": value} for name, value in found.items()]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser("python -m measurements.cluster", description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="number of files")
    parser.add_argument("--turns", type=int, default=2, help="of measuring rates; 0: none")
    arguments = parser.parse_args()
    import_ray(None)
    from pyarrow import parquet  # noqa: PLC0415 - optional extra

    count, cores = arguments.images, usable_cores()
    print(f"Machine: {describe(torch.get_num_threads())}, {cores} cores. {count} images, DN2, {BACKBONE}.", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        paths = make_photographs(folder / "photographs", count)
        with contextlib.redirect_stdout(io.StringIO()):
            xml = make_model("DN2", BACKBONE).to_openvino(folder / "model")
            score(xml, [str(paths[0].parent)], folder / "single.parquet")
        rows, told = killed(xml, paths, folder / "killed")
        expected = parquet.read_table(folder / "single.parquet").to_pylist()
        print(f"\n{told}\n\n{table(compare(rows, expected))}", flush=True)
        if not arguments.turns:
            return
        judge = Judge(ExportedScorer(Export(xml), Export(xml).calibration(), None, maps=False, parallel=cores))
        run_judge(judge, paths[:32])
        found: dict[str, list[Rate]] = {"single machine": [], "--engine ray": []}
        sizes: list[int] = []
        for turn in range(arguments.turns):
            cost = measured(lambda: run_judge(judge, paths), count)
            found["single machine"].append(Rate(1 / cost.elapsed, cost.cpu))
            found["--engine ray"].append(ray_rate(xml, paths, folder / f"rate{turn}", sizes))
        print(f"\n{table(rates(found, cores))}")
        stored = sum(path.stat().st_size for path in (folder / "rate0").glob("*.parquet")) / count
        print(f"\nAn actor has {max(sizes) / 1e6:.0f} MB. A row takes {stored:.0f} bytes.")


def rates(found: dict[str, list[Rate]], cores: int) -> list[dict[str, object]]:
    """Rows of the best of each."""
    best = {name: Rate(max(r.images for r in several), min(r.cpu for r in several)) for name, several in found.items()}
    single = best["single machine"]
    return [
        {
            "": name,
            "images/s a core": rate.images / cores,
            "share": rate.images / single.images,
            "CPU ms an image": 1000 * rate.cpu,
            "share by CPU time": single.cpu / rate.cpu,
        }
        for name, rate in best.items()
    ]


if __name__ == "__main__":
    main()
