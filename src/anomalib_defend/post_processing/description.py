"""What was run, in a JSON file beside the table of results: model, data, splits, seed, versions, time, command line."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend._autoload import is_console

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

    from anomalib_defend.decision.calibration import Calibration

FORMAT = 1
SPLITS = ("train", "val", "test")
PACKAGES = ("anomalib-defend", "anomalib", "torch", "lightning", "timm")


class Run:
    """What is known of a run of any command, which starts now."""

    def __init__(self) -> None:
        self._started, self._clock = datetime.now(timezone.utc), time.monotonic()

    def content(self) -> dict[str, Any]:
        """Plain data, up to now."""
        return {
            "format": FORMAT,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
            "command": _command(),
            "versions": {"Python": sys.version.split()[0], **_versions()},
        }


class Description:
    """Describes a run from its start to its end.

    Args:
        trainer: Of the run.
        model: The Lightning module.
    """

    def __init__(self, trainer: Trainer, model: LightningModule) -> None:
        self._trainer, self._model = trainer, model
        self._run = Run()

    def save(self, table: Path, calibration: Calibration | None) -> None:
        """Write ``test.json`` for ``test.csv``.

        Args:
            table: The table that it describes.
            calibration: What the scores mean, where it is known.
        """
        content = {
            **self._run.content(),
            "model": type(self._model).__name__,
            "arguments": _plain(getattr(self._model, "hparams", {})),
            "checkpoint": _text(getattr(self._trainer, "ckpt_path", None)),
            "seed": getattr(self._model, "run_seed", None),
            "data": _data(getattr(self._trainer, "datamodule", None)),
            "normal": getattr(self._model, "normal", None),
            "device": str(getattr(self._model, "device", "")),
            "calibration": None if calibration is None else calibration.content(),
        }
        text = json.dumps(content, indent=1, default=str)
        description_path(table).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def description_path(table: Path) -> Path:
    """Where the description of a table's run is: ``test.csv`` -> ``test.json``."""
    return table.with_suffix(".json")


def normal_of(datamodule: Any) -> dict[str, Any]:
    """Arguments of a datamodule that tell what is normal, as plain words; those that it has."""
    arguments = {name: getattr(datamodule, name, None) for name in ("category", "categories", "setting")}
    return {
        name: list(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in arguments.items()
        if value is not None
    }


def _data(datamodule: Any) -> dict[str, Any] | None:
    """Name, arguments that tell what was normal, and images of every split by label."""
    if datamodule is None:
        return None
    content: dict[str, Any] = {"name": type(datamodule).__name__, **normal_of(datamodule)}
    arguments = {name: getattr(datamodule, name, None) for name in ("root", "seed")}
    content |= {name: _text(value) for name, value in arguments.items() if value is not None}
    samples = {split: getattr(getattr(datamodule, f"{split}_data", None), "samples", None) for split in SPLITS}
    content["splits"] = {split: _counts(frame) for split, frame in samples.items() if frame is not None}
    return content


def _counts(samples: Any) -> dict[str, int]:
    """Images by what is known of them."""
    names = {0: "normal", 1: "novel"}
    return dict(Counter(names.get(index, "unknown") for index in samples["label_index"].tolist()))


def _plain(arguments: Any) -> dict[str, Any]:
    """Arguments that are numbers, words, or lists of them; not None, which stands for a default."""
    return {
        name: _text(value)
        for name, value in dict(arguments).items()
        if isinstance(value, str | int | float | list | tuple | Path)
    }


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _versions() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a source tree on the path
        return None


def _command() -> str | None:
    """The command line of this process, as it can be run again; None in a user's program."""
    if not is_console():
        return None
    name = Path(sys.argv[0]).name
    program = ["python", "-m", "anomalib_defend"] if name == "__main__.py" else [name]
    return shlex.join([*program, *sys.argv[1:]])
