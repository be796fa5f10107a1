"""CPU time and memory that reading COCO 2017's annotations takes, beside other readers.

``python -m measurements.coco_reading``

It writes instances files as large as the official ones, with the same fields and made-up contents, into a temporary
folder. Each reader reads both in a process of its own. The images are not there: only reading is measured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from anomalib_defend.benchmark.machine import peak_gib
from anomalib_defend.data import SemanticCOCO
from anomalib_defend.data.protocol import make_samples

SPLITS = {"train": (118_287, 860_001), "val": (5_000, 36_781)}
"""Images and annotations of COCO 2017."""

CATEGORY_IDS = [number for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
_NUM_SEGMENTATIONS = 2000  # different ones, to write the files in seconds
_MEAN_POINTS = 19  # of a polygon, which makes the training file 450 MiB as the official one is
_CROWD = 0.012  # share of the annotations
_EMPTY = 0.009  # share of the images


def make_folder(root: Path, splits: dict[str, tuple[int, int]]) -> None:
    """Write the instances files of COCO 2017, and image folders that hold a placeholder."""
    for name, (num_images, num_annotations) in splits.items():
        write_instances(root / "annotations" / f"instances_{name}2017.json", num_images, num_annotations)
        (root / f"{name}2017").mkdir()
        (root / f"{name}2017" / "placeholder").touch()


def write_instances(path: Path, num_images: int, num_annotations: int, seed: int = 0) -> None:
    """Write an instances file with polygons, crowd annotations as run lengths, and the images' addresses."""
    rng = random.Random(seed)  # noqa: S311
    ids = sorted(rng.sample(range(1, 600_000), num_images))
    annotated = rng.sample(ids, max(round(num_images * (1 - _EMPTY)), 1))
    polygons = [_polygons(rng) for _ in range(_NUM_SEGMENTATIONS)]
    crowds = [_run_lengths(rng) for _ in range(_NUM_SEGMENTATIONS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "made up", "year": 2017}, "licenses": [], "images": [')
        file.writelines(_separated(_image(rng, number, path.stem) for number in ids))
        file.write('], "annotations": [')
        file.writelines(
            _separated(
                _annotation(rng, number, rng.choice(annotated), polygons, crowds) for number in range(num_annotations)
            )
        )
        file.write(f'], "categories": {json.dumps([_category(number) for number in CATEGORY_IDS])}}}')


def _separated(items: Iterator[str]) -> Iterator[str]:
    for index, item in enumerate(items):
        yield f", {item}" if index else item


def _image(rng: random.Random, number: int, stem: str) -> str:
    name = f"{number:012d}.jpg"
    return json.dumps(
        {
            "license": rng.randint(1, 8),
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/{stem.removeprefix('instances_')}/{name}",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/8186/{rng.getrandbits(32)}_{rng.getrandbits(40):x}_z.jpg",
            "id": number,
        }
    )


def _polygons(rng: random.Random) -> str:
    lengths = [3 + int(rng.expovariate(1 / (_MEAN_POINTS - 3))) for _ in range(rng.choice([1, 1, 1, 1, 2]))]
    return json.dumps([[round(rng.uniform(0, 640), 2) for _ in range(2 * length)] for length in lengths])


def _run_lengths(rng: random.Random) -> str:
    return json.dumps({"counts": [rng.randint(1, 900) for _ in range(rng.randint(50, 700))], "size": [480, 640]})


def _annotation(rng: random.Random, number: int, image: int, polygons: list[str], crowds: list[str]) -> str:
    crowd = rng.random() < _CROWD
    category = CATEGORY_IDS[(7 * image + rng.randrange(3)) % len(CATEGORY_IDS)]  # about three an image, as in COCO
    box = [round(rng.uniform(0, 300), 2) for _ in range(4)]
    return (
        f'{{"segmentation": {rng.choice(crowds if crowd else polygons)}, "area": {box[2] * box[3]}, '
        f'"iscrowd": {int(crowd)}, "image_id": {image}, "bbox": {box}, "category_id": {category}, '
        f'"id": {number}}}'
    )


def _category(number: int) -> dict[str, object]:
    return {"supercategory": "thing", "id": number, "name": f"thing {number}"}


def read_annotations(root: Path) -> object:
    """The datamodule's reader."""
    return SemanticCOCO(root, category="person").read_annotations()


def read_samples(root: Path) -> object:
    """The whole protocol: read, and choose the images for training and test."""
    return make_samples(SemanticCOCO(root, category="person").read_annotations().images, {"thing 1"})


def read_with_json(root: Path) -> object:
    """The standard library's reader, all fields."""
    return [json.loads(path.read_bytes()) for path in sorted(root.glob("annotations/*.json"))]


def read_with_pycocotools(root: Path) -> object:
    """COCO's own package."""
    coco = importlib.import_module("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        return [coco.COCO(path) for path in sorted(root.glob("annotations/*.json"))]


def measure(reader: Callable[[Path], object], root: Path) -> tuple[float, float, float]:
    """Return the CPU seconds that a reader takes, and the process's peak memory before and after it in GB."""
    before = peak_gib()
    start = time.process_time()
    result = reader(root)
    seconds = time.process_time() - start
    del result
    return seconds, before, peak_gib()


def main() -> None:
    """Print a table of the readers."""
    readers = [read_annotations, read_samples, read_with_json]
    if importlib.util.find_spec("pycocotools"):
        readers.append(read_with_pycocotools)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), SPLITS)
        print("| reader | CPU seconds | peak memory, GB | of it before reading, GB |\n|---|---|---|---|")
        for reader in readers:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, before, peak = pool.apply(measure, (reader, Path(folder)))
            print(f"| {reader.__name__} | {seconds:.1f} | {peak:.2f} | {before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
