"""What a comparison consists of: cells, model x data x category x seed; kept beside the results."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anomalib

from anomalib_defend._version import __version__

Settings = dict[str, Any]
PLAN = "comparison.json"


class ComparisonError(ValueError):
    """Something in the YAML file, or something that it names, cannot be used."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        model: Name of the model in the table, a column.
        data: Name of the data in the table, a group of rows.
        category: Name of the category in the table, a row.
        seed: Seed of model, data and training.
        model_settings: ``class_path`` and ``init_args``.
        data_settings: ``class_path`` and ``init_args``.
        trainer: Arguments of Lightning's ``Trainer``.
        accelerator: ``cpu`` or ``cuda``.
    """

    model: str
    data: str
    category: str
    seed: int
    model_settings: Settings
    data_settings: Settings
    trainer: Settings
    accelerator: str

    @cached_property
    def key(self) -> str:
        """Hash of everything that a result depends on: settings and versions."""
        versions = {"anomalib": anomalib.__version__, "anomalib_defend": __version__}
        return _digest({**asdict(self), **versions})

    @cached_property
    def variant(self) -> str:
        """Hash of the model's settings without what differs from cell to cell: equal ones cost the same per pixel."""
        init_args = {k: v for k, v in self.model_settings["init_args"].items() if k not in {"seed", "image_size"}}
        return _digest([self.model_settings["class_path"], init_args, self.trainer, self.accelerator])

    @property
    def folder(self) -> str:
        """Name of the cell's folder: readable, and one of its own."""
        name = "__".join([self.model, self.data, self.category, f"seed{self.seed}"])
        slug = re.sub(r"[^\w.+-]+", "-", name)[:120]
        return slug if slug == name else f"{slug}-{_digest(name)[:6]}"

    @property
    def job(self) -> Settings:
        """The job file of anomalib's benchmark pipeline."""
        job = {"seed": self.seed, "model": self.model_settings, "data": self.data_settings}
        return {"accelerator": self.accelerator, "benchmark": job}

    def __str__(self) -> str:
        """One line."""
        return f"{self.model} | {self.data} | {self.category} | seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """What a YAML file asks for.

    Attributes:
        name: Name of the file without its ending.
        title: Heading of the report.
        reference: The model with which the others are compared.
        models: Names of the models in order.
        data: Names of the data in order.
        papers: For data that a paper's table has, the table's name in ``papers.yaml``.
        by_novel_class: Data of which the minimum over the novel classes is reported, too.
        cells: All runs.
        source: The YAML file.
    """

    name: str
    title: str
    reference: str
    models: list[str]
    data: list[str]
    papers: dict[str, str]
    by_novel_class: list[str]
    cells: list[Cell]
    source: str = field(default="", compare=False)


def save(comparison: Comparison, folder: Path) -> None:
    """Leave the plan beside the results, where the report finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{PLAN}.part"
    part.write_text(json.dumps(asdict(comparison), indent=2))
    part.replace(folder / PLAN)


def read_plan(folder: Path) -> Comparison:
    """Read what ``save`` has left.

    Raises:
        ComparisonError: If there is no such file.
    """
    try:
        content = json.loads((folder / PLAN).read_text())
        return Comparison(**{**content, "cells": [Cell(**cell) for cell in content["cells"]]})
    except (OSError, ValueError, TypeError) as error:
        msg = f"{folder} holds no results of `anomalib-defend benchmark run`: {error}"
        raise ComparisonError(msg) from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
