"""Scoring: torch, torch.compile and OpenVINO, one image and a batch at a time, from memory and from files.

All contenders compute the same: resize, normalise, score, map and label. Images in memory have the model's size.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data.utils import read_image
from torch import nn

from anomalib_defend.benchmark.machine import has_bf16

from . import operations
from .exports import CALIBRATION, export, queue_scorer, scorer
from .machine import Floor
from .networks import photographs, random_images, random_model
from .report import Options, Result, by_backbone, table
from .timing import alternate, speedup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anomalib_defend.models import Defend

TORCH, DEFAULT = "torch eager, f32", "OpenVINO, default (bf16 where the processor has it)"
INT8 = "OpenVINO, int8 PTQ"


def eager(model: Callable[..., Any], dtype: torch.dtype = torch.float32) -> Callable[[np.ndarray], Any]:
    """Score with torch, under autocast for other types than float32."""

    @torch.inference_mode()
    def score(images: np.ndarray) -> Any:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(torch.from_numpy(images))

    return score


def make_scorers(
    model: Defend, folder: Path, calibration: Path, options: Options
) -> tuple[dict[str, Callable[[np.ndarray], Any]], list[str]]:
    """Contenders that take images in memory, and why others are left out."""
    left_out = []
    xml = {name: export(model, folder, name, calibration) for name in ("f32", "int8 PTQ")}
    threads = options.threads
    scorers = {
        TORCH: eager(model),
        "OpenVINO, f32": scorer(xml["f32"], threads, precision="f32"),
        DEFAULT: scorer(xml["f32"], threads),
        INT8: scorer(xml["int8 PTQ"], threads),
    }
    if has_bf16():
        scorers["torch eager, bf16 autocast"] = eager(model, torch.bfloat16)
    if options.quick:
        left_out.append("torch.compile, int8 weights, requests in parallel: not in a --quick run.")
        return scorers, left_out
    scorers["OpenVINO, int8 weights"] = scorer(export(model, folder, "int8 weights", calibration), threads)
    scorers["OpenVINO, default, 2 requests at once"] = queue_scorer(xml["f32"], threads, 2)
    if shutil.which("g++") or shutil.which("clang++"):
        for name, dtype in (("f32", torch.float32), ("bf16 autocast", torch.bfloat16)):
            scorers[f"torch.compile, {name}"] = eager(torch.compile(model.model), dtype)
    else:
        left_out.append("torch.compile: this machine has no C++ compiler.")
    return scorers, left_out


def _prepare_and_score(prepare: Callable[[], np.ndarray], score: Callable[[np.ndarray], Any]) -> None:
    score(prepare())


def measure(backbone: str, options: Options, folder: Path) -> tuple[str, dict[str, float]]:
    """Table and figures of one encoder."""
    paths = photographs(options.images, max(CALIBRATION, options.batch), folder / "photographs")
    calibration = options.images or paths[0].parent
    model = random_model(backbone).eval()
    resize = model.pre_processor.resize
    scorers, left_out = make_scorers(model, folder, calibration, options)
    images = random_images(options.batch, model.model.image_size).numpy()
    tokens = options.batch * (model.model.teacher.patch_embed.num_patches + 1)
    floor = Floor(model.model.teacher, tokens, options.threads)

    def calls(prepare: Callable[[str], np.ndarray]) -> dict[str, Callable[[], Any]]:
        return {name: partial(_prepare_and_score, partial(prepare, name), score) for name, score in scorers.items()}

    def read(count: int, name: str) -> np.ndarray:
        """Files as an array; a single one is resized by the exported model itself."""
        prepare = nn.Identity() if count == 1 and "OpenVINO" in name else resize
        return torch.stack([prepare(read_image(path, as_tensor=True)) for path in paths[:count]]).numpy()

    rounds, clock = options.repeats, options.clock
    many = alternate({**calls(lambda _: images), **floor.calls}, rounds, clock)
    one = alternate(calls(lambda _: images[:1]), 4 * rounds, clock)
    files = alternate(calls(partial(read, options.batch)), rounds, clock)
    file = alternate(calls(partial(read, 1)), 4 * rounds, clock)
    flop = options.batch * operations.inference(model.model)

    def share(name: str) -> float:
        return floor.seconds(many, flop, single=name.endswith("f32")) / median(many[name])

    rows: list[dict[str, object]] = [
        {
            f"images/s, {backbone}": name,
            f"batch {options.batch}": options.batch / median(many[name]),
            "times as fast": speedup(many, TORCH, name),
            "share of its floor": None if "int8" in name else share(name),
            "batch 1": 1 / median(one[name]),
            f"files, batch {options.batch}": options.batch / median(files[name]),
            "files, one by one": 1 / median(file[name]),
        }
        for name in scorers
    ]
    rows += [
        {f"images/s, {backbone}": name, f"batch {options.batch}": options.batch * rate / flop}
        for name, rate in floor.rates(many).items()
    ]
    figures = {
        "inference_speedup": speedup(many, TORCH, DEFAULT),
        "int8_speedup": speedup(many, DEFAULT, INT8),
        "fraction_of_floor": share(DEFAULT),
    }
    return "\n\n".join([table(rows), *left_out]), figures


def run(options: Options) -> Iterator[Result]:
    """Measure with each encoder."""
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            markdown, figures = measure(backbone, options, Path(folder))
        yield Result(markdown, by_backbone(figures, backbone, options))
