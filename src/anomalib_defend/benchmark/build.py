"""A cell's model and data, built as anomalib's command line builds them; bad input is refused before the first cell."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

import anomalib_defend.data
import anomalib_defend.models  # noqa: F401 - both make their bare names known
from anomalib_defend.console import questions
from anomalib_defend.models.components.encoder_weights import load_pretrained
from anomalib_defend.nn.encoder import create_encoder, data_config
from anomalib_defend.suggest import did_you_mean

from .plan import Cell, Comparison, ComparisonError, Settings

_BASES: dict[str, type] = {"model": AnomalibModule, "data": AnomalibDataModule}


@dataclass(frozen=True)
class Size:
    """How much work a cell is, apart from its model.

    Attributes:
        train_images: Number of training images.
        test_images: Number of test images.
        pixels: Height times width of the input, 1 where the model's settings do not tell.
    """

    train_images: int
    test_images: int
    pixels: int


def parse(kind: str, settings: Settings) -> Namespace:
    """Check the arguments of a ``model`` or of ``data`` against the class's signature."""
    name = settings["class_path"]
    if "." not in name and name not in (names := _names(_BASES[kind])):
        near = did_you_mean(name, names)
        msg = (
            f"unknown class_path {name!r}.{near} Available are {', '.join(sorted(names))}, and others as module.Class."
        )
        raise ValueError(msg)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{kind}", type=_BASES[kind])
    return parser.parse_object({kind: settings})


def _names(base: type) -> set[str]:
    """Of the classes that a bare name may mean."""
    below: set[str] = set().union(*map(_names, base.__subclasses__()))
    return below if inspect.isabstract(base) else {base.__name__} | below


def build(kind: str, settings: Settings) -> Any:
    """Build a ``model`` or ``data``, objects among its arguments included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{kind}", type=_BASES[kind])
    return parser.instantiate_classes(parser.parse_object({kind: settings}))[kind]


def complete(comparison: Comparison) -> Comparison:
    """Give seeds to the models and data that take one, and take the pictures of every test image off.

    Raises:
        ComparisonError: If a class or argument is unknown; names file and key. ``check`` looks at all of them.
    """
    accepted: dict[str, set[str]] = {}

    def arguments(kind: str, name: str, settings: Settings) -> set[str]:
        known = f"{kind} {settings['class_path']}"
        if known not in accepted:
            with _named(comparison, kind, name):
                accepted[known] = set(parse(kind, settings)[kind].init_args.keys())
        return accepted[known]

    cells = []
    for cell in comparison.cells:
        defaults = {"seed": cell.seed, "visualizer": False}
        completed: dict[str, Any] = {}
        for kind, name in (("model", cell.model), ("data", cell.data)):
            settings = getattr(cell, f"{kind}_settings")
            takes = arguments(kind, name, settings)
            init_args = {key: value for key, value in defaults.items() if key in takes} | settings["init_args"]
            completed[f"{kind}_settings"] = {**settings, "init_args": init_args}
        cells.append(replace(cell, **completed))
    return replace(comparison, cells=cells)


def check(comparison: Comparison) -> dict[str, Size]:
    """Build every model and read every data set once, so that nothing is refused in the middle of the night.

    Returns:
        The size of each cell, by key.

    Raises:
        ComparisonError: If arguments, data or weights are not usable; names file and key.
    """
    if any(cell.accelerator == "cuda" for cell in comparison.cells) and not torch.cuda.is_available():
        msg = f"{comparison.source}: accelerator: cuda, but torch finds no GPU. There is cpu, too."
        raise ComparisonError(msg)
    known = inspect.signature(Trainer).parameters
    checked: set[str] = set()
    counts: dict[str, tuple[int, int]] = {}
    sizes = {}
    for cell in comparison.cells:
        for key in cell.trainer:
            if key not in known:
                near = did_you_mean(key, known)
                msg = f"{comparison.source}: trainer: Lightning's Trainer has no argument {key!r}.{near}"
                raise ComparisonError(msg)
        model, data = _without_seed(cell.model_settings), _without_seed(cell.data_settings)
        if model not in checked:
            with _named(comparison, "model", cell.model):
                _check_model(cell.model_settings)
            checked.add(model)
        if data not in counts:
            with _named(comparison, "data", cell.data):
                counts[data] = _read(cell.data_settings)
        sizes[cell.key] = Size(*counts[data], _pixels(cell))
    return sizes


def _without_seed(settings: Settings) -> str:
    return repr((settings["class_path"], {**settings["init_args"], "seed": None}))


def _check_model(settings: Settings) -> None:
    weights = settings["init_args"].get("weights")
    if weights is not None and not Path(weights).is_file():
        msg = f"init_args.weights: there is no file {weights}."
        raise FileNotFoundError(msg)
    hparams = build("model", settings).hparams
    if weights is None and "weights" in hparams and hparams.get("backbone") and hparams.get("pre_trained"):
        _fetch(hparams["backbone"])


@cache
def _fetch(backbone: str) -> None:
    """Download timm's weights or refuse now; a cell finds them in the cache."""
    load_pretrained(create_encoder(backbone, data_config(backbone).image_size), backbone)


def _read(settings: Settings) -> tuple[int, int]:
    root = settings["init_args"].get("root")
    if root is not None and not Path(root).exists() and not settings["init_args"].get("download"):
        msg = f"init_args.root: there is no folder {root}."
        raise FileNotFoundError(msg)
    datamodule: AnomalibDataModule = build("data", settings)
    datamodule.prepare_data()
    datamodule.setup()
    return len(datamodule.train_data), len(datamodule.test_data)


def _pixels(cell: Cell) -> int:
    init_args = cell.model_settings["init_args"]
    size = init_args.get("image_size")
    if size is None and init_args.get("backbone"):
        with suppress(ValueError):  # another model's backbone, not one of timm's
            size = data_config(init_args["backbone"]).image_size
    if size is None:
        return 1
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height) * int(width)


@contextmanager
def _named(comparison: Comparison, kind: str, name: str) -> Iterator[None]:
    """Name the YAML file and the key in whatever goes wrong inside."""
    try:
        yield
    except Exception as error:  # of any class and library
        section = "models" if kind == "model" else "data"
        words = " ".join(str(error).split()) or type(error).__name__
        msg = f"{comparison.source}: {section}.{name}: {words}{questions(str(error))}"
        raise ComparisonError(msg) from error
