"""`NoveltyDetectorMixin`, what every model of this package does alike.

The files read in this order: ``contract`` (what a model says of itself), ``training``, ``evaluation``, and here
checkpoints and exports.
"""

from __future__ import annotations

import gc
import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.deploy import CompressionType

from anomalib_defend._version import __version__
from anomalib_defend.decision import Calibration, calibration_path
from anomalib_defend.nn.vit import plain_attention
from anomalib_defend.post_processing import require_threshold
from anomalib_defend.post_processing.description import normal_of

from .checkpoints import (
    MODEL_KEY,
    NORMAL_KEY,
    VERSION_KEY,
    differing,
    read_checkpoint,
    renamed,
    verify_components,
    verify_content,
    verify_shapes,
)
from .evaluation import Evaluation
from .export import calibration_images, complete_export, given_to_export, quantize
from .guard import check_weights
from .own_arguments import OwnArguments
from .training import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


logger = logging.getLogger(__name__)

ONNX_OPSET = 18  # what torch's exporter writes; anomalib's default of 14 makes it try, and fail, to convert down


class NoveltyDetectorMixin(Evaluation):
    """Comes before ``AnomalibModule`` in a model's bases, which anomalib wants to see there directly.

    The model names what is its own, see `Contract`; training, evaluation, checkpoints and exports happen without it.
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save this package's version and the run's seed, too, and no argument that is of this machine.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        self._guard.check()
        checkpoint["state_dict"].pop(PLACEHOLDER, None)
        check_weights(checkpoint["state_dict"])
        super().on_save_checkpoint(checkpoint)
        if self._is_fitting:
            self.normal = normal_of(getattr(self.trainer, "datamodule", None))
        checkpoint.update({VERSION_KEY: __version__, MODEL_KEY: type(self).__name__, NORMAL_KEY: self.normal})
        if self.run_seed is not None:
            checkpoint["hyper_parameters"]["seed"] = self.run_seed
        if "target_fpr" in checkpoint["hyper_parameters"]:  # of the threshold that is saved
            checkpoint["hyper_parameters"]["target_fpr"] = getattr(self.post_processor, "target_fpr", None)
        for name in self.of_this_machine:
            checkpoint["hyper_parameters"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the arguments over from the checkpoint, so that none has to be repeated; own ones are kept aside.

        Raises:
            ValueError: If the checkpoint is of another model or version, or its weights hold NaN or infinity.
        """
        self._verify_content(checkpoint)
        self.normal = checkpoint.get(NORMAL_KEY)
        verify_components(checkpoint, self._checkpointable_components())
        self.migrate(checkpoint)
        saved, state = self.saved_arguments(checkpoint), checkpoint["state_dict"]
        changed = {name: value for name, value in saved.items() if self.hparams.get(name) != value}
        if self._trainer is not None:  # else it is built of this checkpoint
            self._keep_own_arguments()
            self._tell_overridden(changed)
        self.hparams.update(changed)
        if changed or differing(self.state_dict(), state, self._any_size):
            self.model = self.build(state).to(self.device)
        verify_shapes(checkpoint, self.state_dict(), self._any_size)
        if self.post_processor is not None:  # Lightning's second copy, as of a callback: no threshold is moved there
            checkpoint.get("callbacks", {}).pop(self.post_processor.state_key, None)
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.ckpt_path is not None:
            self.checkpoint_file = Path(self.trainer.ckpt_path)
        if self._is_fitting:
            self._runner.begin(self.stages())
            if hasattr(self, PLACEHOLDER):
                state[PLACEHOLDER] = torch.zeros(())

    def _keep_own_arguments(self) -> None:
        self._own = self._own or OwnArguments(self)

    def _tell_overridden(self, changed: Mapping[str, Any]) -> None:
        defaults = {name: item.default for name, item in inspect.signature(type(self)).parameters.items()}
        overridden = self._own.overridden(changed, defaults) if self._own is not None else ""
        if overridden:
            logger.warning(
                "ckpt_path brings its own arguments, and these that were given have no effect: %s. Leave them out; to "
                "change them, train anew.",
                overridden,
            )

    @classmethod
    def _verify_content(cls, checkpoint: dict[str, Any]) -> None:
        renamed(checkpoint, cls.tensors_of_0_1)
        verify_content(checkpoint, [base.__name__ for base in cls.__mro__], cls.distinctive_tensor, cls.architecture)

    def migrate(self, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint of version 0.1 one of this version, where names of tensors are not all that has changed."""

    def saved_arguments(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint brings; to resume, seed and epoch are set, ``own_on_resume`` is the user's.

        Raises:
            ValueError: If a training cannot go on from it.
        """
        saved = dict(checkpoint["hyper_parameters"])
        if not self._is_fitting:
            if self.trained_steps.sum() > checkpoint["state_dict"]["trained_steps"].sum():
                logger.warning(
                    "The weights trained so far are replaced by those of ckpt_path, which has had fewer steps."
                )
            return saved
        if "optimizer_states" not in checkpoint:
            msg = "ckpt_path was saved with save_weights_only: it can be tested, but no training goes on from it."
            raise ValueError(msg)
        if self._runner.state_key not in checkpoint.get("callbacks", {}):
            version = checkpoint.get(VERSION_KEY, "0.1.0")
            msg = (
                f"ckpt_path was written by version {version}: it can be tested, but version {__version__} cannot go on "
                "with its training: install that version, or train anew."
            )
            raise ValueError(msg)
        # where Lightning goes on: in the epoch of the checkpoint, unless it was saved after that epoch's end
        self._first_epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if saved.get("seed") is not None:
            self._seed_run(saved["seed"])
        parameters = inspect.signature(type(self)).parameters
        for name in self.own_on_resume:
            if self.hparams[name] != parameters[name].default:
                saved[name] = self.hparams[name]
        if self.own_on_resume:
            kept = ", ".join(f"{name}={saved.get(name)!r}" for name in self.own_on_resume)
            logger.info("Resuming with the checkpoint's arguments and %s.", kept)
        return saved

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """As in every anomalib model; a file that is no checkpoint is named.

        For ``Engine.export`` the components are those of the model that it was given, as for a test or a prediction.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a checkpoint of this model and version, is damaged, or holds code.
        """
        if "://" not in str(checkpoint_path):
            cls._verify_content(read_checkpoint(checkpoint_path, mmap=True))  # it is built from the arguments in it
        given = given_to_export(inspect.currentframe().f_back)  # type: ignore[union-attr] # there is a frame in CPython
        arguments = {**given, **kwargs}
        if "post_processor" in arguments and "target_fpr" in inspect.signature(cls).parameters:
            arguments.setdefault("target_fpr", None)  # the checkpoint's is of its own post-processor
        return super().load_from_checkpoint(checkpoint_path, *args, **arguments)

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model is refused."""
        self.require_training("export")
        require_threshold(self.post_processor, "export")
        self.eval()
        with complete_export(Path(export_root)) as folder:
            path = super().to_torch(folder, *args, **kwargs)
            self._save_calibration(path)
            return Path(export_root) / path.relative_to(folder)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model is refused."""
        self.require_training("export")
        require_threshold(self.post_processor, "export")
        kwargs.setdefault("opset_version", ONNX_OPSET)
        # torch takes fused attention apart in a way that OpenVINO runs slower
        with complete_export(Path(export_root)) as folder, plain_attention(self):
            file = super().to_onnx(folder, *args, **kwargs)
            self._save_calibration(file)
            path = Path(export_root) / file.relative_to(folder)
        gc.collect()  # torch.export leaves a subclass of this class's name behind, with which bare names are ambiguous
        return path

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model, or too few images to calibrate on, are refused."""
        if kwargs.get("compression_type") == CompressionType.INT8_PTQ:
            calibration_images(kwargs.get("datamodule"))
        with complete_export(Path(export_root)) as folder:
            path = super().to_openvino(folder, *args, **kwargs)
            self._save_calibration(path)
            return Path(export_root) / path.relative_to(folder)

    def _save_calibration(self, model: Path) -> None:
        calibration = getattr(self.post_processor, "calibration", None)
        if calibration is not None:
            calibration.save(calibration_path(model))

    def set_target_fpr(self, target_fpr: float) -> Calibration:
        """Move the threshold, see `NormalQuantilePostProcessor.set_target_fpr`.

        A later training sets its own, by the ``target_fpr`` that the model was made with.
        """
        self._keep_own_arguments()
        calibration = self.post_processor.set_target_fpr(target_fpr)
        self.hparams["target_fpr"] = target_fpr
        return calibration

    _post_training_quantization_ov = staticmethod(quantize)
