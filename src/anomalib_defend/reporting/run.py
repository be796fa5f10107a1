"""What was run: from the description beside the table, else from what else the run's folder keeps."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from anomalib_defend.decision.calibration import Calibration
from anomalib_defend.decision.models import open_model
from anomalib_defend.files.names import to_text
from anomalib_defend.post_processing.description import description_path

TABLES = ("test*.csv", "predictions*.csv")


@dataclass
class Run:
    """A table of results, and what is known of where it comes from."""

    table: Path
    content: dict[str, Any] = field(default_factory=dict)
    """As ``post_processing.description`` writes it; without what is not known."""
    calibration: Calibration | None = None

    @property
    def is_test(self) -> bool:
        """Whether the table was made by a test, as far as its name says."""
        return self.table.name.startswith("test")

    def normal_categories(self) -> list[str]:
        """What is normal by name, as the data say it, else as those of the training did.

        Empty where it is not known, or is all but some. The ``category`` of a datamodule without ``setting`` is no
        promise: a novel image of MVTec's bottle is a bottle.
        """
        data = self.content.get("data") or {}
        if not data.keys() & {"category", "categories"}:  # a folder of images for `predict`
            data = self.content.get("normal") or {}
        if data.get("setting") != "uni_class":
            return []
        names = data.get("categories") or data.get("category") or []
        return [str(name) for name in (names if isinstance(names, list) else [names])]

    @property
    def seed(self) -> int | str | None:
        """That of the run; a model without such an argument draws nothing."""
        arguments = self.content.get("arguments") or {}
        if self.content.get("seed") is not None:
            return int(self.content["seed"])
        return arguments.get("seed") if "seed" in arguments or not arguments else "none, nothing is drawn"

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what is known."""
        content, data = self.content, self.content.get("data") or {}
        arguments = content.get("arguments") or {}
        splits = [f"{name}: {_counts(counts)}" for name, counts in (data.get("splits") or {}).items()]
        known = {
            "Model": content.get("model"),
            "Encoder": arguments.get("backbone"),
            "Data": _joined({name: data[name] for name in ("name", "category", "setting", "root") if name in data}),
            "Images of each split": "; ".join(splits),
            "Validation images behind the threshold": self.calibration and f"{self.calibration.count} normal ones",
            "target_fpr": self.calibration and f"{self.calibration.target_fpr:g}",
            "Seed": self.seed,
            "Checkpoint": content.get("checkpoint"),
            "Started": content.get("started"),
            "Duration": f"{content['seconds']:g} s" if "seconds" in content else None,
            "Device": content.get("device"),
            "Versions": _joined(content.get("versions") or {}, " "),
            "Model's arguments": _joined(arguments),
            "Table": self.table,
        }
        return [(name, to_text(str(value))) for name, value in known.items() if value not in {None, ""}]

    def unfinished(self) -> str:
        """What the table may lack; empty where a run has left its description, which is the last that it does."""
        path = description_path(self.table)
        if path.is_file():
            return ""
        return (
            f"There is no {to_text(path.name)} beside {to_text(self.table.name)}: the run was stopped before its end, "
            "is of an older version, or the file was left behind."
        )

    def unknown(self) -> list[str]:
        """What a reader would look for, and is not known."""
        content = self.content
        wanted = {
            "model": content.get("model"),
            "encoder": (content.get("arguments") or {}).get("backbone"),
            "data": content.get("data"),
            "counts of the splits": (content.get("data") or {}).get("splits"),
            "seed": self.seed,
            "versions": content.get("versions"),
            "time": content.get("started"),
            "command line": content.get("command"),
            "normal validation scores": self.calibration,
        }
        return [name for name, value in wanted.items() if value is None]

    def commands(self) -> list[str]:
        """The command lines to repeat it, as far as they are known."""
        own = shlex.join(["anomalib-defend", "report", str(self.table)])
        return [to_text(line) for line in (self.content.get("command"), own) if line]


def find_run(path: Path, model: Path | None = None) -> Run:
    """Find the newest table of a folder, and what is known of its run.

    Args:
        path: A run's folder, or the table itself.
        model: Checkpoint, export, or ``.calibration.json`` that made it, for what the folder does not tell.

    Raises:
        FileNotFoundError: If there is no table, or no such model.
        ValueError: If the description or the model cannot be read.
    """
    run = Run(_find_table(path))
    run.content = _content(run.table)
    if model is not None:
        run.calibration = Calibration.load(model) if model.suffix == ".json" else open_model(model).calibration()
    elif run.content.get("calibration"):
        run.calibration = _calibration(run.table, run.content["calibration"])
    return run


def _calibration(table: Path, content: dict[str, Any]) -> Calibration:
    try:
        return Calibration.from_content(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"The calibration in {to_text(str(description_path(table)))} cannot be read ({error!r}): give --model."
        raise ValueError(msg) from error


def _find_table(path: Path) -> Path:
    if path.is_file():
        return path
    where = to_text(str(path))
    if not path.is_dir():
        msg = f"{where} does not exist: give a run's folder (results/MODEL/DATA/CATEGORY/latest), or its table."
        raise FileNotFoundError(msg)
    tables = [found for pattern in TABLES for found in path.glob(pattern)]
    if not tables:
        below = sorted({str(found.parent) for pattern in TABLES for found in path.rglob(pattern)})
        hint = f" There are some in {to_text(', '.join(below[:3]))}." if below else " `anomalib test` writes one."
        msg = f"{where} holds no test.csv and no predictions.csv: give the folder of a finished test or predict.{hint}"
        raise FileNotFoundError(msg)
    return max(tables, key=lambda found: found.stat().st_mtime_ns)


def _content(table: Path) -> dict[str, Any]:
    """The description; of older runs, what the configuration of anomalib's command line tells."""
    path = description_path(table)
    try:
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return {name: value for name, value in content.items() if value is not None}
        path = table.with_name("config.yaml")
        return _configured(path) if path.is_file() else {}
    except (ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        msg = f"{to_text(str(path))} cannot be read ({error}): remove it to make a report without it."
        raise ValueError(msg) from error


def _configured(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    content: dict[str, Any] = {}
    for part in ("model", "data"):
        value = config.get(part)
        if isinstance(value, dict) and "class_path" in value:
            arguments = {name: item for name, item in (value.get("init_args") or {}).items() if item is not None}
            name = value["class_path"].rpartition(".")[2]
            content |= (
                {"model": name, "arguments": arguments} if part == "model" else {part: {"name": name, **arguments}}
            )
    if config.get("ckpt_path"):
        content["checkpoint"] = config["ckpt_path"]
    return content


def _joined(values: dict[str, Any], sign: str = " = ") -> str:
    return ", ".join(f"{name}{sign}{value}" for name, value in values.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {label}" for label, number in counts.items()) or "none"
