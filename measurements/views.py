"""What views and larger inputs cost, and what they bring for it: a table and a plot of docs/benchmarks.md.

``python -m measurements.views runs/benchmark/objects --plot docs/views.png``: of every model of a finished comparison,
the passes of its encoder (``Defend``: of teacher and student) at that encoder's own size that an image takes (by
operations), and images a second and milliseconds an image of its OpenVINO model (f32, one thread, photographs of 375 x
500 pixels in memory; weights are random, which costs the same), beside the comparison's AUROC, its difference to the
comparison's reference, and that to the best model of the same encoder that looks once at an image and takes no more
passes. A table for each group of data, the plot of the first.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import timm
import torch
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anomalib_defend import SemanticFolder
from anomalib_defend.benchmark.build import build
from anomalib_defend.benchmark.machine import describe
from anomalib_defend.benchmark.statistics import Difference
from anomalib_defend.benchmark.table import Table

from .speed.exports import scorer
from .speed.networks import PHOTOGRAPH, random_images, write_photographs
from .speed.report import table
from .speed.timing import alternate

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

BATCH, TRAINING = 8, 40
NETWORKS = ("model.encoder", "model.teacher", "model.student")
PLACES = ((5, -3, "left"), (-5, -3, "right"), (0, 6, "center"), (0, -12, "center"))  # points from a mark, alignment


class Price(NamedTuple):
    """What an image costs: passes of the encoder at its own size, and milliseconds, alone and in a batch."""

    passes: float
    alone: float
    batched: float


def operations(module: torch.nn.Module, image: torch.Tensor, parts: tuple[str, ...] = ("",)) -> int:
    """Multiplications and additions of an image, in the modules below the parts."""
    plain = sdpa_kernel(SDPBackend.MATH)  # the fused attention of a CPU is not counted
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), plain:
        module(image)
    counts = {f".{name.partition('.')[2]}": sum(of.values()) for name, of in counter.get_flop_counts().items()}
    below = [name for name in counts if any(name.startswith(f".{part}") and name != f".{part}" for part in parts)]
    outermost = (name for name in below if not any(name.startswith(f"{other}.") for other in below))
    return sum(counts[name] for name in outermost)


def fitted(settings: dict[str, Any], folder: Path) -> AnomalibModule:
    """A model with random weights on generated photographs, which costs what a good one does."""
    arguments = {**settings["init_args"], "weights": None, "pre_trained": False, "visualizer": False}
    if settings["class_path"] == "Defend":
        arguments |= {"dense_epochs": 0, "distill_epochs": 1}
    model = build("model", {**settings, "init_args": arguments})
    data = SemanticFolder(folder, "normal", num_workers=0, seed=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Engine(default_root_dir=folder / "runs", accelerator="cpu", devices=1, **quiet).fit(model, datamodule=data)
    return model.eval()


def price(results: Table, repeats: int, scratch: Path) -> dict[str, Price]:
    """Of all models with a finished cell, taking turns."""
    write_photographs(scratch / "normal", TRAINING)
    settings = _settings(results)
    images = random_images(BATCH, PHOTOGRAPH)
    passes: dict[str, float] = {}
    contenders: dict[str, Callable[[], object]] = {}
    for number, (name, chosen) in enumerate(settings.items()):
        model = fitted(chosen, scratch)
        encoder = timm.create_model(chosen["init_args"]["backbone"], num_classes=0).eval()
        own = operations(encoder, torch.rand(1, *encoder.pretrained_cfg["input_size"]))
        passes[name] = operations(model, images[:1], NETWORKS) / own
        compiled = scorer(model.to_openvino(scratch / str(number)), 1, precision="f32")
        contenders[f"{name}, alone"] = partial(compiled, images[:1].numpy())
        contenders[f"{name}, batched"] = partial(compiled, images.numpy())
    times = {name: 1000 * median(seconds) for name, seconds in alternate(contenders, repeats).items()}
    return {name: Price(passes[name], times[f"{name}, alone"], times[f"{name}, batched"] / BATCH) for name in passes}


def _settings(results: Table) -> dict[str, dict[str, Any]]:
    """Of all models with a finished cell."""
    return {cell.model: cell.model_settings for cell, _ in results.results}


def rows(against: Callable[[str | None], Table], prices: dict[str, Price], data: str) -> list[dict[str, object]]:
    """A row for each model that has an AUROC on the data; differences are ``against`` a model, or the reference."""
    results = against(None)
    settings = _settings(results)
    row, found = results.last_row(data), []
    for name, cost in prices.items():
        values = results.values(name, data, row)
        if values:
            rival = best_rival(name, against, prices, data)
            found.append(
                {
                    "model": name,
                    "encoder": settings[name]["init_args"]["backbone"],
                    "passes": cost.passes,
                    "ms, alone": cost.alone,
                    f"ms, in {BATCH}": cost.batched,
                    f"images/s, in {BATCH}": 1000 / cost.batched,
                    "seeds": len(values),
                    "AUROC": f"{mean(values):.3f}",
                    "difference": _text(results.difference(name, data, row)),
                    "best rival": rival,
                    "difference to it": _text(against(rival).difference(name, data, row)) if rival else None,
                }
            )
    return found


def best_rival(name: str, against: Callable[[str | None], Table], prices: dict[str, Price], data: str) -> str | None:
    """The best other model of the same encoder that looks once at an image, for no more passes (1 % more is none).

    Best on the seeds that it shares with the model.
    """
    results = against(None)
    settings = {model: chosen["init_args"] for model, chosen in _settings(results).items()}
    row, own = results.last_row(data), settings[name]["backbone"]
    ahead = {
        other: found.mean
        for other, cost in prices.items()
        if other != name
        and settings[other]["backbone"] == own
        and "+" not in settings[other].get("views", "")
        and cost.passes <= 1.01 * prices[name].passes
        and isinstance(found := against(other).difference(name, data, row), Difference)
    }
    return min(ahead, key=ahead.__getitem__, default=None)


def _text(found: Difference | str | None) -> str | None:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if isinstance(found, Difference) else found


def plot(found: list[dict[str, object]], data: str, path: Path) -> None:
    """AUROC against the milliseconds of an image in a batch."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colors: dict[object, str] = {}
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("{x:.0f}")
    axes.margins(x=0.2, y=0.1)
    labels: list[tuple[str, tuple[float, float]]] = []
    for row in found:
        place = (float(str(row[f"ms, in {BATCH}"])), float(str(row["AUROC"])))
        name = str(row["model"]).rpartition(", ")[2]
        new = row["encoder"] not in colors
        color = colors.setdefault(row["encoder"], f"C{len(colors)}")
        marker = "s" if name.startswith("DN2") else "o"
        axes.scatter(*place, s=25, marker=marker, color=color, label=row["encoder"] if new else None)
        labels.append((name, place))
    axes.legend(loc="lower left", fontsize=8)
    axes.set_xlabel(f"milliseconds an image, OpenVINO f32, one thread, batches of {BATCH}")
    axes.set_ylabel(f"image AUROC, {data}")
    axes.grid(alpha=0.3, which="both")
    name_marks(axes, labels)
    figure.savefig(path, dpi=100)


def name_marks(axes: Axes, labels: list[tuple[str, tuple[float, float]]]) -> None:
    """Write names beside their marks, each where it covers no other name or mark and stays inside, if there is room."""
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # sets the scale
    marks = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform([place for _, place in labels])]
    taken: list[BboxBase] = list(marks)
    for name, place in labels:
        for x, y, align in PLACES:
            text = axes.annotate(name, place, (x, y), textcoords="offset points", fontsize=8, ha=align)
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1:
                break
            text.remove()
        else:
            text = axes.annotate(name, place, PLACES[0][:2], textcoords="offset points", fontsize=8)
            box = text.get_window_extent()
        taken.append(box)


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of the comparison's results")
    parser.add_argument("--data", nargs="+", default=["VOC uni-class, fresh"], help="groups of the comparison")
    parser.add_argument("--reference", help="model to take the differences to; by default the comparison's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    against = cache(lambda name: Table([options.results], name or options.reference))
    results = against(None)
    with TemporaryDirectory() as scratch:
        prices = price(results, options.repeats, Path(scratch))
    print(describe(1))
    for data in options.data:
        print(f"Differences to {results.comparison.reference} on {data}")
        found = rows(against, prices, data)
        print(table([{name: value for name, value in row.items() if name != "encoder"} for row in found]))
    if options.plot:
        plot(rows(against, prices, options.data[0]), options.data[0], options.plot)


if __name__ == "__main__":
    main()
