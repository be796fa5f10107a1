"""What a threshold keeps in another arithmetic than its own: prints a table of docs/reliability.md.

``python -m measurements.arithmetics SHARED``: nearest neighbours (`DN2`) on DeiT-Tiny's features, 300 photographs of
dogs in the training; validation and test photographs are drawn again and again from those that are not. Each arithmetic
gets the threshold of the engine's validation scores, and that of its own, as ``anomalib-defend threshold MODEL
--calibrate FOLDER`` computes it.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anomalib.engine import Engine

from anomalib_defend import DN2, SemanticFolder
from anomalib_defend.decision.calibration import threshold_and_scale
from anomalib_defend.decision.models import measure, open_model

CATEGORY, BACKBONE = "dog", "deit_tiny_patch16_224"
TRAINING, TEST, DRAWS = 300, 300, 200
LISTS = "VOC2012/ImageSets/Main/{}_trainval.txt"
OPENVINO_MODELS = {"f32": None, "int8": "int8_ptq"}
"""Exports, by their folder: anomalib's ``compression_type``."""
ARITHMETICS: dict[str, tuple[str, str | None]] = {
    "OpenVINO, f32": ("f32", "f32"),
    "OpenVINO, bf16 hint": ("f32", "bf16"),
    "OpenVINO, int8 (PTQ)": ("int8", None),
}


class Kept(NamedTuple):
    """Rates of false alarms [draws], with the engine's threshold and with that of the arithmetic itself."""

    engines: np.ndarray
    anew: np.ndarray


def photographs(shared: Path, folder: Path) -> tuple[Path, list[Path]]:
    """Unpack the photographs of the category.

    Returns:
        A folder of those to train on, and the files of the others.
    """
    with zipfile.ZipFile(shared / "data" / "voc2012_animals.zip") as archive:
        archive.extractall(folder)
    pairs = [line.split() for line in (folder / LISTS.format(CATEGORY)).read_text().splitlines()]
    files = [folder / "VOC2012" / "JPEGImages" / f"{name}.jpg" for name, flag in pairs if flag == "1"]
    files = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
    (training := folder / "training" / CATEGORY).mkdir(parents=True)
    for file in files[:TRAINING]:
        file.rename(training / file.name)
    return training.parent, files[TRAINING:]


def train(shared: Path, folder: Path, training: Path) -> tuple[Path, dict[str, Path]]:
    """Train the model; returns its checkpoint, and its exports by name."""
    data = SemanticFolder(training, CATEGORY, num_workers=0, seed=0)
    weights = str(shared / "weights" / f"{BACKBONE}.fp16.safetensors")
    model = DN2(BACKBONE, weights=weights, visualizer=False)
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=data)
    exports = {
        name: model.to_openvino(folder / name, compression_type=compression, datamodule=data)
        for name, compression in OPENVINO_MODELS.items()
    }
    return Path(engine.best_model_path), exports


def scores(ckpt: Path, exports: dict[str, Path], files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Raw scores [n] of the files, the engine's first."""
    checkpoint = open_model(ckpt)
    found = {"engine, float32": measure(checkpoint.raw_outputs(None), files).image}
    with torch.autocast("cpu", torch.bfloat16):
        found["engine, bf16-mixed"] = measure(checkpoint.raw_outputs(None), files).image
    for name, (export, hint) in ARITHMETICS.items():
        found[name] = measure(open_model(exports[export]).raw_outputs(hint), files).image
    return found


def realised(engines: np.ndarray, own: np.ndarray, count: int, target_fpr: float) -> Kept:
    """Draw validation and test photographs, and count the test photographs above both thresholds."""
    rng, rates = np.random.default_rng(1), []
    for _ in range(DRAWS):
        order = rng.permutation(len(own))
        validation, test = order[:count], order[count : count + TEST]
        thresholds = [threshold_and_scale(values[validation], 0.0, target_fpr)[0] for values in (engines, own)]
        rates.append([(own[test] > threshold).mean() for threshold in thresholds])
    return Kept(*np.array(rates).T)


def table(found: dict[str, np.ndarray], counts: Sequence[int], targets: Sequence[float]) -> list[str]:
    """The table's lines."""
    engines = next(iter(found.values()))
    rows = ["| arithmetic | largest difference of a score, in standard deviations | validation images | `target_fpr` | "
            "with the engine's threshold | calibrated anew |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, own in found.items():
        difference = np.abs(own - engines).max() / engines.std()
        for count in counts:
            for target in targets:
                cells = [_cell(rates) for rates in realised(engines, own, count, target)]
                rows.append(f"| {name} | {difference:.2g} | {count} | {target} | {' | '.join(cells)} |")
    return rows


def _cell(rates: np.ndarray) -> str:
    low, high = np.quantile(rates, [0.025, 0.975])
    return f"{rates.mean():.3f}, {low:.3f} to {high:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--images", type=int, help="so many of the photographs that are not in the training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        training, files = photographs(arguments.shared, folder)
        found = scores(*train(arguments.shared, folder, training), files[: arguments.images])
    print(f"{len(next(iter(found.values())))} photographs of the category that trained nothing")
    print("\n".join(table(found, (100, 300), (0.05, 0.1))))


if __name__ == "__main__":
    main()
