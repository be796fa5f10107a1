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
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomalib_defend.benchmark.machine import describe
from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.models import Export
from anomalib_defend.scoring.cluster import import_ray
from anomalib_defend.scoring.exported import ExportedScorer
from anomalib_defend.scoring.judges import Judge
from anomalib_defend.scoring.run import score

from .ray_rate import Rate, on_ray, ray_rate, scored
from .scoring import make_model, make_photographs, measured, run_judge
from .speed.report import table

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

BACKBONE = "deit_tiny_patch16_224"


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
