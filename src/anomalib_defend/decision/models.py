"""Checkpoints and exports as one thing: they score normal images, and take another threshold."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomalib_defend.files.names import to_text
from anomalib_defend.scoring import images

from .calibration import ENGINE, Calibration, Level, calibration_path, threshold_and_scale
from .exports import find_endings, open_graph, read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    RawOutputs = Callable[[torch.Tensor], tuple[float, NDArray[np.float32] | None]]
    """Of an image [3, H, W]: its score before scaling, and its map ``(h, w)``, where there is one."""

POST_PROCESSOR = "post_processor."
CONFIG = "anomalib_post_processor_config"
KINDS = "a checkpoint (.ckpt), an OpenVINO model (.xml) or an ONNX model (.onnx)"


class Measured:
    """What a model says of normal images.

    Args:
        scores: Raw scores [n].
        maps: Largest and mean value of each map [n], where there are maps.
    """

    def __init__(self, scores: Sequence[float], maps: Sequence[tuple[float, float]]) -> None:
        self.image = np.asarray(scores, dtype=np.float32)
        self._maps = np.asarray(maps, dtype=np.float32) if len(maps) else None

    def level(self, name: str, target_fpr: float) -> Level | None:
        """Threshold and normal scores of images, or of maps."""
        if name == "image":
            scores = typical = self.image
        elif self._maps is not None:
            scores, typical = self._maps.T
        else:
            return None
        median = float(torch.from_numpy(typical).median())
        threshold, scale = threshold_and_scale(scores, median, target_fpr)
        return Level(float(threshold), float(scale), median, tuple(np.sort(scores).tolist()))


def measure(outputs: RawOutputs, paths: Sequence[Path]) -> Measured:
    """Score images one by one."""
    scores, maps = [], []
    for path in paths:
        score, heat = outputs(_read(path))
        scores.append(score)
        if heat is not None:
            maps.append((float(heat.max()), float(heat.mean())))
    return Measured(scores, maps)


class Export:
    """An OpenVINO or ONNX model, with the JSON file beside it.

    Args:
        path: The .xml or .onnx file.

    Raises:
        ValueError: If its post-processing is not this package's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.graph = open_graph(path)
        try:
            self.endings = find_endings(self.graph)
        except ValueError as error:
            msg = (
                f"{path} is not scored, and its threshold cannot be moved ({error}): take the checkpoint, or a model "
                "exported from it with enable_normalization=True, as it is by default."
            )
            raise ValueError(msg) from error

    def calibration(self) -> Calibration:
        """What the file beside it says.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is another model's.
        """
        path = calibration_path(self.path)
        calibration = Calibration.load(path)
        threshold, _ = read(self.graph, self.endings["image"])
        if not np.isclose(threshold, calibration.image.threshold, rtol=2e-3, atol=1e-6):  # half precision
            msg = (
                f"{path} is of another model: its threshold is {calibration.image.threshold}, the graph's {threshold}."
            )
            raise ValueError(msg)
        return calibration

    @property
    def target_fpr(self) -> float:
        """The rate that the threshold is for, as the file beside it says."""
        return self.calibration().target_fpr

    def raw_outputs(self, hint: str | None) -> RawOutputs:
        """What the model says of an image, in the arithmetic of OpenVINO's precision ``hint``."""
        run = self.graph.raw_outputs(self.endings, hint)

        def outputs(image: torch.Tensor) -> tuple[float, NDArray[np.float32] | None]:
            score, *maps = run(image.numpy()[None])
            return float(score.reshape(-1)[0]), maps[0].reshape(maps[0].shape[-2:]) if maps else None

        return outputs

    def arithmetic(self, hint: str | None) -> str:
        """A name for what the scores were computed in."""
        return f"{'OpenVINO' if self.path.suffix == '.xml' else 'ONNX Runtime'} on a CPU, {hint or 'default'} precision"

    def save(self, path: Path, calibration: Calibration, labels: bool | None) -> None:
        """Write the model with another threshold.

        Raises:
            ValueError: If labels are to be switched on or off.
        """
        if labels is not None:
            msg = "labels are a part of an export's graph: change the checkpoint, and export it again."
            raise ValueError(msg)
        write(self.graph, self.endings, calibration)
        self.graph.save(path)
        calibration.save(calibration_path(path))


class Checkpoint:
    """A checkpoint of one of this package's models.

    Args:
        path: The .ckpt file.

    Raises:
        ValueError: If its post-processor is not `NormalQuantilePostProcessor`, or it is no checkpoint.
    """

    def __init__(self, path: Path) -> None:
        from anomalib_defend.models.components.checkpoints import read_checkpoint  # noqa: PLC0415 - seconds
        from anomalib_defend.post_processing import NormalQuantilePostProcessor  # noqa: PLC0415 - seconds

        self.path = path
        self._content = read_checkpoint(path)
        if "target_fpr" not in self._content.get(CONFIG, {}):
            msg = f"{path} has no target_fpr: its post-processor is not NormalQuantilePostProcessor."
            raise ValueError(msg)
        self._processor = NormalQuantilePostProcessor()
        self._processor.load_checkpoint_config(self._content[CONFIG])
        state: dict[str, Any] = self._content["state_dict"]
        own = {name.removeprefix(POST_PROCESSOR): value for name, value in state.items() if POST_PROCESSOR in name}
        self._processor.load_state_dict(own)

    def calibration(self) -> Calibration:
        """Threshold and normal validation scores.

        Raises:
            ValueError: If an older version has saved none.
        """
        from anomalib_defend.post_processing.calibrated import NO_CALIBRATION  # noqa: PLC0415 - seconds

        if self._processor.calibration is None:
            raise ValueError(NO_CALIBRATION)
        return self._processor.calibration

    @property
    def target_fpr(self) -> float:
        """The rate that the threshold is for."""
        return self._processor.target_fpr

    @property
    def model_name(self) -> str:
        """The bare name of the model; one of version 0.1 has none in its checkpoint."""
        from anomalib_defend.models.components.checkpoints import MODEL_KEY  # noqa: PLC0415 - seconds

        return str(self._content.get(MODEL_KEY, "MODEL"))

    @cached_property
    def model(self) -> Any:
        """The model, for scoring on the CPU."""
        return self.load().eval()

    def raw_outputs(self, hint: str | None) -> RawOutputs:
        """What the model says of an image, as in the engine on a CPU: an export's graph resizes in another way.

        Raises:
            ValueError: If there is a precision hint.
        """
        if hint is not None:
            msg = f"hint={hint!r} is of OpenVINO: give its .xml file."
            raise ValueError(msg)
        model = self.model

        @torch.inference_mode()
        def outputs(image: torch.Tensor) -> tuple[float, NDArray[np.float32] | None]:
            found = model.model(model.pre_processor.transform(image)[None])
            heat = found.anomaly_map
            return found.pred_score.item(), None if heat is None else heat.float().reshape(heat.shape[-2:]).numpy()

        return outputs

    def load(self, **arguments: Any) -> Any:
        """The model, on the CPU, with other ``arguments`` than the checkpoint's, if there are any."""
        import anomalib_defend.models as package  # noqa: PLC0415 - seconds
        from anomalib_defend.models.components.checkpoints import MODEL_KEY  # noqa: PLC0415 - seconds

        named = self._content.get(MODEL_KEY)
        for name in [named] if named in package.__all__ else package.__all__:  # version 0.1 names none
            try:
                return getattr(package, name).load_from_checkpoint(self.path, map_location="cpu", **arguments)
            except ValueError:  # noqa: PERF203 - five at most
                if name in {named, package.__all__[-1]}:
                    raise
        return None

    def arithmetic(self, hint: str | None) -> str:
        """A name for what the scores were computed in."""
        del hint
        return ENGINE

    def save(self, path: Path, calibration: Calibration | None, labels: bool | None) -> None:
        """Write the checkpoint with another threshold, or with or without labels."""
        from anomalib_defend.models.components.checkpoint_io import AtomicCheckpointIO  # noqa: PLC0415 - seconds

        if calibration is not None:
            self._processor.load_calibration(calibration)
        if labels is not None:
            self._processor.enable_thresholding = labels
        state = {POST_PROCESSOR + name: value for name, value in self._processor.state_dict().items()}
        arguments = {**self._content["hyper_parameters"], "target_fpr": self._processor.target_fpr}
        content = {**self._content, CONFIG: self._processor.checkpoint_config(), "hyper_parameters": arguments}
        AtomicCheckpointIO().save_checkpoint({**content, "state_dict": {**self._content["state_dict"], **state}}, path)


def open_model(path: Path) -> Checkpoint | Export:
    """Open a checkpoint or an export; a folder that holds one export stands for it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is something else.
    """
    found = path
    if path.is_dir():
        files = [file for suffix in (".xml", ".onnx") for file in sorted(path.glob(f"*{suffix}"))]
        if len(files) != 1:
            msg = f"{path} holds {len(files)} exported models: name the file, {KINDS}."
            raise FileNotFoundError(msg)
        found = files[0]
    if not found.is_file():
        msg = f"{found} does not exist: give {KINDS}."
        raise FileNotFoundError(msg)
    if found.suffix == ".ckpt":
        return Checkpoint(found)
    if found.suffix in {".xml", ".onnx"}:
        return Export(found)
    if found.suffix == ".pt":  # a pickle: reading it may run code
        msg = f"A torch export ({found}) is not scored, and its threshold cannot be moved: give {KINDS}."
        raise ValueError(msg)
    msg = f"{found} is no model that is scored, or whose threshold can be moved: give {KINDS}."
    raise ValueError(msg)


def _read(path: Path) -> torch.Tensor:
    try:
        return images.read(str(path))  # as `score` does, with what it refuses
    except images.UnusableImageError as error:
        msg = f"Cannot read image {to_text(str(path))} ({error}). Replace the file, or take it out of the folder."
        raise ValueError(msg) from error
