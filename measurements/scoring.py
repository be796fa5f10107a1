"""How fast files are scored, beside what the machine could do; and what the first view first saves.

``python -m measurements.scoring`` writes 5,000 JPEG files of 375 x 500 pixels and scores them with `Defend` and `DN2`
of random weights: `anomalib-defend score` all of them; a loop over `OpenVINOInferencer`, `anomalib predict` (torch,
without pictures), and `score` with Ray where it is installed, a tenth. Starting and compiling are not counted.

Bound: cores / (CPU seconds of reading and resizing an image in one thread + CPU seconds of the model an image, in one
thread, at its best batch), both measured in the same run, before and after the contenders. ``--quick`` is for a look.

``--voc VOC2012 --weights deit_tiny.safetensors`` measures the first view first instead: `ObjectPrototypes` of five
views on a stream of which 90 % are normal, in float32 and in OpenVINO's own precision.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine

from anomalib_defend.benchmark.machine import describe
from anomalib_defend.data import PredictFolder, SemanticVOC
from anomalib_defend.data.workers import usable_cores
from anomalib_defend.decision.models import Export
from anomalib_defend.models import DN2, ObjectPrototypes
from anomalib_defend.nn.views import LAYOUTS
from anomalib_defend.nn.views import Views as Layout
from anomalib_defend.scoring.exported import ExportedScorer, is_coarse, rounding
from anomalib_defend.scoring.judges import FirstViewJudge, Judge, margin
from anomalib_defend.scoring.models import MEASURED
from anomalib_defend.scoring.pipeline import Judged, score_rows
from anomalib_defend.scoring.undecided import Undecided

from .ray_rate import ray_rate
from .speed.networks import random_model, write_photographs
from .speed.report import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BACKBONES = ("deit_tiny_patch16_224", "vit_small_patch16_224")
BATCHES = (1, 8, 32)
LARGEST = max(BATCHES)
ROUNDS = 5
ENOUGH_FOR_RAY = 400  # files, in partitions of 64, of which the first and the last ones tell no rate
NORMAL_SHARE = 0.9
VIEWS: Layout = "whole+corners"
DIFFERENT = 250  # files
OTHERS = 0.1  # of the files, for the slower contenders


class Cost(NamedTuple):
    """Seconds an image."""

    elapsed: float
    cpu: float


class Bound(NamedTuple):
    """CPU seconds an image, in one thread."""

    reading: float
    model: float


def measured(call: Callable[[], object], images: int) -> Cost:
    """Time of a call, and CPU time of this process."""
    elapsed, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost((time.perf_counter() - elapsed) / images, (time.process_time() - cpu) / images)


def make_photographs(folder: Path, count: int) -> list[Path]:
    """Files, of which at most 250 are different: so many are in memory while they are made."""
    paths = write_photographs(folder, min(count, DIFFERENT))
    for index in range(DIFFERENT, count):
        paths.append(folder / f"{index:05d}.jpg")
        shutil.copyfile(paths[index % DIFFERENT], paths[-1])
    return paths


def make_model(name: str, backbone: str) -> Any:
    """A model with random weights that counts as trained and validated."""
    torch.manual_seed(0)
    if name == "Defend":
        model: Any = random_model(backbone)
    else:
        model = DN2(backbone, pre_trained=False, visualizer=False)
        features = torch.randn(1000, model.model.encoder.num_features)
        model.model.normality.fit(torch.nn.functional.normalize(features, dim=-1))
        model.trained_steps.fill_(1)
    model.post_processor.enable_thresholding = True
    model.post_processor.calibrate(*(torch.rand(100) for _ in range(3)))
    return model.eval()


def bound(xml: Path, paths: Sequence[Path]) -> Bound:
    """CPU seconds an image of reading and resizing, and of the model at its best batch, in one thread.

    Means, as the contenders' are: the shortest of several calls is the machine at its best, which nobody has for long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scorer = ExportedScorer(Export(xml), None, None, maps=False, parallel=1)
    sample = paths[:100]
    images = [scorer.prepare(str(path)) for path in islice(cycle(sample), LARGEST)]
    request = scorer._requests.get()

    def infer(batch: int) -> None:
        pixels = torch.stack(images[:batch]).numpy()
        for _ in range(LARGEST // batch):
            request.infer({0: pixels})

    model: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    reading = []
    for _ in range(ROUNDS):  # in turns
        reading.append(measured(lambda: [scorer.prepare(str(path)) for path in sample], len(sample)).cpu)
        for batch, costs in model.items():
            costs.append(measured(partial(infer, batch), LARGEST).cpu)
    torch.set_num_threads(threads)
    return Bound(mean(reading), min(map(mean, model.values())))


def run_judge(judge: Judged, paths: Sequence[Path], found: list[Any] | None = None) -> None:
    """Score files as the command does, all but the table; add what is found to a list."""
    for entries in score_rows(map(str, paths), judge):
        if found is not None:
            found += entries


def throughput(name: str, backbone: str, paths: Sequence[Path], fewer: Sequence[Path], folder: Path) -> str:
    """The table of one model, whose slower contenders have fewer files."""
    model = make_model(name, backbone)
    with contextlib.redirect_stdout(io.StringIO()):
        xml = model.to_openvino(folder / name / backbone)
    inferencer = OpenVINOInferencer(xml, "CPU")
    cores = usable_cores()
    judge = Judge(ExportedScorer(Export(xml), Export(xml).calibration(), None, maps=False, parallel=cores))
    data = PredictFolder(fewer[0].parent)
    engine = Engine(
        default_root_dir=folder / "predict", accelerator="cpu", devices=1, logger=False, enable_progress_bar=False
    )
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "loop over OpenVINOInferencer": (lambda: [inferencer.predict(path) for path in fewer], len(fewer)),
        "anomalib predict (torch)": (lambda: engine.predict(model, datamodule=data), len(fewer)),
        "anomalib-defend score": (lambda: run_judge(judge, paths), len(paths)),
    }
    run_judge(judge, paths[:32])
    inferencer.predict(paths[0])
    before = bound(xml, paths)
    found = {name: measured(*contender) for name, contender in contenders.items()}
    after = bound(xml, paths)
    reading, own = (mean(pair) for pair in zip(before, after, strict=True))
    best = cores / (reading + own)
    loop = found["loop over OpenVINOInferencer"].elapsed
    if find_spec("ray") and len(fewer) >= ENOUGH_FOR_RAY:
        rate = ray_rate(xml, fewer, folder / "ray" / name / backbone, [])
        found["anomalib-defend score --engine ray"] = Cost(1 / rate.images, rate.cpu)
    rows: list[dict[str, object]] = [
        {
            f"{name}, {backbone}": contender,
            "images/s": 1 / cost.elapsed,
            "times the loop": loop / cost.elapsed,
            "share of the bound": 1 / cost.elapsed / best,
            "CPU ms an image": 1000 * cost.cpu if "predict" not in contender else None,  # its workers are not counted
        }
        for contender, cost in found.items()
    ]
    rows.append(
        {
            f"{name}, {backbone}": f"bound: {1000 * reading:.1f} ms reading, {1000 * own:.1f} ms model",
            "images/s": best,
            "times the loop": loop * best,
            "share of the bound": 1.0,
            "CPU ms an image": 1000 * (reading + own),
        }
    )
    return table(rows)


class Views(NamedTuple):
    """What the first view first does with a stream."""

    category: str
    precision: str
    images: int
    decided: float
    """Share of the images that the first view decided."""
    passes: float
    """Passes of the encoder, as a share of those of all views."""
    cost: float
    """CPU time, as a share of that of all views."""
    other_labels: int
    """Labels that are not those of all views: in bf16 a score depends on the batch."""
    not_counted: int
    """Those of them that `score` does not count as undecided."""


def first_view(root: str, weights: str, category: str, folder: Path, count: int) -> list[Views]:
    """Measure on the test images of a category, 90 % of them normal, drawn with replacement."""
    model = ObjectPrototypes(BACKBONES[0], weights=weights, views=VIEWS, visualizer=False)
    data = SemanticVOC(root, category=category)
    engine = Engine(
        default_root_dir=folder / category, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False
    )
    engine.fit(model, datamodule=data)
    checkpoint = engine.best_model_path
    with contextlib.redirect_stdout(io.StringIO()):
        full = ObjectPrototypes.load_from_checkpoint(checkpoint).to_openvino(folder / category / "full")
        whole = ObjectPrototypes.load_from_checkpoint(checkpoint, views="whole")
        first = whole.to_openvino(folder / category / "first")
    samples = data.test_data.samples
    rng = np.random.default_rng(0)
    normal, novel = (samples[samples.label_index == index].image_path.tolist() for index in (0, 1))
    number = round(NORMAL_SHARE * count)
    drawn = [*rng.choice(normal, number), *rng.choice(novel, count - number)]
    paths = [Path(str(path)) for path in rng.permutation(drawn)]

    return [compare_views(category, precision, full, first, paths) for precision in ("f32", None)]


def compare_views(category: str, precision: str | None, full: Path, first: Path, paths: list[Path]) -> Views:
    """Score a stream with all views, and with the first one first."""

    def scorer(xml: Path) -> ExportedScorer:
        return ExportedScorer(Export(xml), Export(xml).calibration(), precision, maps=False, parallel=usable_cores())

    coarse = any(is_coarse(Export(xml), precision) for xml in (first, full))
    calibration = Export(full).calibration()
    largest = max(rounding(Export(xml), precision, [str(path) for path in paths[:MEASURED]]) for xml in (first, full))
    judge = FirstViewJudge(scorer(first), scorer(full), margin(calibration, largest, coarse=coarse))
    judges: dict[str, Judged] = {"full": Judge(scorer(full)), "first": judge}
    costs: dict[str, list[float]] = {name: [] for name in judges}
    entries: dict[str, list[Any]] = {}
    for _ in range(3):  # in turns
        for name, judged in judges.items():
            entries[name] = []
            costs[name].append(measured(partial(run_judge, judged, paths, entries[name]), len(paths)).cpu)
    undecided = Undecided.around(calibration, coarse=coarse, rounding=largest)
    pairs = zip(entries["full"], entries["first"], strict=True)
    others = [one.row.raw_score for one, other in pairs if one.row.label != other.row.label]
    decided = sum(entry.upper_bound for entry in entries["first"]) / len(paths)
    views = len(LAYOUTS[VIEWS])
    return Views(
        category,
        precision or "OpenVINO's own",
        len(paths),
        decided,
        (1 + (1 - decided) * views) / views,
        min(costs["first"]) / min(costs["full"]),
        len(others),
        len(others) - undecided.count(np.array(others)),
    )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser("python -m measurements.scoring", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="DeiT-Tiny, 200 files: a look, no measurement")
    parser.add_argument("--images", type=int, help="number of files; default: 5000")
    parser.add_argument(
        "--voc", type=lambda path: str(Path(path).resolve()), help="Pascal VOC 2012: measure the first view first"
    )
    parser.add_argument("--weights", type=lambda path: str(Path(path).resolve()), help="of DeiT-Tiny, for --voc")
    parser.add_argument("--categories", nargs="+", default=["cat", "sheep"])
    arguments = parser.parse_args()
    count = arguments.images or (200 if arguments.quick else 5000)
    print(f"Machine: {describe(torch.get_num_threads())}, {usable_cores()} cores. {count} images.", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # where anomalib's inferencer keeps what OpenVINO compiles
        if arguments.voc:
            for category in arguments.categories:
                rows = first_view(arguments.voc, arguments.weights, category, folder, count)
                print(f"\n{table([row._asdict() for row in rows])}", flush=True)
            return
        paths = make_photographs(folder / "photographs", count)
        fewer = make_photographs(folder / "fewer", max(1, round(OTHERS * count)))
        for backbone in BACKBONES[: 1 if arguments.quick else None]:
            for model in ("Defend", "DN2"):
                print(f"\n{throughput(model, backbone, paths, fewer, folder)}", flush=True)


if __name__ == "__main__":
    main()
