"""The model that scores, and that of its first view: a checkpoint or an OpenVINO export each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_defend.decision.calibration import calibration_path
from anomalib_defend.decision.models import Checkpoint, Export, open_model
from anomalib_defend.files.names import to_text

from .judges import FirstViewJudge, Judge, margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_defend.decision.calibration import Calibration

    from .judges import Scorer


MEASURED = 32
"""How many images, the first ones, tell what rounding changes."""


class Model:
    """What scores the images, and what the scores mean.

    Args:
        path: As for `open_model`.
        first_view: The model of the first view alone, or None.
        target_fpr: Moves the threshold, unless it is None.
        hint: OpenVINO's precision, or None.
        cores: That an export uses.

    Raises:
        FileNotFoundError: If there is no such model, or no calibration, and one is needed.
        ValueError: If an argument does not fit the model.
    """

    def __init__(
        self, path: Path, first_view: Path | None, target_fpr: float | None, hint: str | None, cores: int
    ) -> None:
        self._opened, self._cores = open_model(path), cores
        self.path, self._hint, self._target_fpr = self._opened.path, hint, target_fpr
        if hint is not None and isinstance(self._opened, Checkpoint):
            msg = f"hint={hint!r} is of OpenVINO: give its .xml file."
            raise ValueError(msg)
        self._first = None if first_view is None else open_model(first_view)
        if self._first is not None and type(self._first) is not type(self._opened):
            msg = f"--first-view {first_view} and {path} must both be checkpoints, or both OpenVINO models."
            raise ValueError(msg)
        self.missing = ""
        """Why there is no calibration."""
        self.calibration: Calibration | None = None
        try:
            self.calibration = self._calibration(self._opened)
        except (FileNotFoundError, ValueError) as error:
            if target_fpr is not None or first_view is not None:
                raise
            self.missing = str(error)

    @property
    def first_view(self) -> Path | None:
        """The file of the first view's model."""
        return None if self._first is None else self._first.path

    @property
    def coarse(self) -> bool:
        """Whether it, or its first view, computes with fewer bits than float32 has: bf16 on this machine, or 8 bits."""
        return any(self._is_coarse(opened) for opened in (self._opened, self._first))

    def rounding(self, paths: Sequence[str]) -> float:
        """What fewer bits may change of raw scores, measured on images; 0 where they are not fewer, or not known."""
        if self.calibration is None or not self.coarse:
            return 0.0
        from .exported import rounding  # noqa: PLC0415 - optional extra

        exports = [opened for opened in (self._opened, self._first) if isinstance(opened, Export)]
        return max(rounding(export, self._hint, paths) for export in exports)

    def _is_coarse(self, opened: Checkpoint | Export | None) -> bool:
        if not isinstance(opened, Export) or opened.path.suffix != ".xml":
            return False
        from .exported import is_coarse  # noqa: PLC0415 - optional extra

        return is_coarse(opened, self._hint)

    def content(self) -> dict[str, Any]:
        """Plain data for a run's description."""
        calibration = self.calibration
        return {
            "model": self._opened.model_name if isinstance(self._opened, Checkpoint) else None,
            "checkpoint": to_text(str(self.path)),
            "calibration": None if calibration is None else calibration.content(),
        }

    def judge(self, maps: Path | None, root: Path) -> Judge:
        """What makes the rows of images, with all views.

        Args:
            maps: Folder of pictures, if any are wanted.
            root: Folder of the table.
        """
        return Judge(self._scorer(self._opened, self.calibration, maps is not None), maps, root)

    def first_view_judge(self, rounding: float = 0.0) -> FirstViewJudge:
        """What makes the rows of images, with the first view alone where that decides.

        Args:
            rounding: As measured.
        """
        assert self._first is not None  # noqa: S101 - it is asked for where there is one
        first = self._scorer(self._first, self._calibration(self._first), maps=False, views="whole")
        full = self._scorer(self._opened, self.calibration, maps=False)
        assert self.calibration is not None  # noqa: S101 - as above
        return FirstViewJudge(first, full, margin(self.calibration, rounding, coarse=self.coarse))

    def _calibration(self, opened: Checkpoint | Export) -> Calibration:
        calibration = opened.calibration()
        return calibration if self._target_fpr is None else calibration.moved(self._target_fpr)

    def _scorer(
        self, opened: Checkpoint | Export, calibration: Calibration | None, maps: bool, views: str | None = None
    ) -> Scorer:
        if isinstance(opened, Export):
            from .exported import ExportedScorer  # noqa: PLC0415 - optional extra

            return ExportedScorer(opened, calibration, self._hint, maps=maps, parallel=self._cores)
        from anomalib_defend.models import ObjectPrototypes  # noqa: PLC0415 - seconds

        from .checkpoint import CheckpointScorer  # noqa: PLC0415 - as above

        model = opened.load()
        if views is not None:
            if not isinstance(model, ObjectPrototypes):
                msg = f"--first-view {opened.path} is no checkpoint of ObjectPrototypes: no other model has one."
                raise ValueError(msg)
            model = opened.load(views=views)
        return CheckpointScorer(model, calibration)


def files_of(model: Path) -> list[Path]:
    """The files that a model is made of."""
    return [path for path in (model, model.with_suffix(".bin"), calibration_path(model)) if path.is_file()]


def digest(model: Path | None) -> str | None:
    """A number of what a model's files hold."""
    if model is None:
        return None
    number = hashlib.blake2b(digest_size=16)
    for path in files_of(model):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                number.update(block)
    return number.hexdigest()
