"""What every model of this package does alike: training in stages, evaluation, checkpoints and exports.

A model names what is its own (see `NoveltyDetectorMixin`); everything here happens without it.
"""

from __future__ import annotations

import gc
import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.engine.plugins.checkpoint_io import AnomalibCheckpointIO
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import ImageVisualizer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import nn

from anomalib_defend._version import __version__
from anomalib_defend.decision import Calibration, calibration_path
from anomalib_defend.nn.encoder import DataConfig, data_config
from anomalib_defend.nn.normality import Normality
from anomalib_defend.nn.vit import plain_attention
from anomalib_defend.post_processing import (
    AUROC,
    F1Score,
    NormalQuantilePostProcessor,
    PredictionTable,
    require_threshold,
)
from anomalib_defend.pre_processing import ResizeNormalize
from anomalib_defend.visualization import NoveltyVisualizer

from .arguments import as_pair
from .checkpoints import (
    MODEL_KEY,
    VERSION_KEY,
    AtomicCheckpointIO,
    LastEpoch,
    differing,
    read_checkpoint,
    renamed,
    verify_components,
    verify_content,
    verify_shapes,
)
from .encoder_weights import load_pretrained, load_weights
from .export import calibration_images, complete_export, quantize
from .guard import LossGuard, check_scores, check_weights
from .run_folder import number_latest
from .seeds import seed_epoch
from .stage_bar import stage_progress_bar
from .stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from lightning.pytorch import Callback
    from typing_extensions import Self

    from .stage import Stage

logger = logging.getLogger(__name__)

ONNX_OPSET = 18  # what torch's exporter writes; anomalib's default of 14 makes it try, and fail, to convert down
PLACEHOLDER = "ddp_placeholder"


class NoveltyDetectorMixin(AnomalibModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """Comes before ``AnomalibModule`` in a model's bases, which anomalib wants to see there directly.

    The model names what is its own: the attributes below, ``build`` and ``stages``. Its ``__init__`` checks its
    arguments, calls this one's, and sets ``self.model`` to a network whose ``forward`` gives an ``InferenceBatch``.
    """

    distinctive_tensor: ClassVar[str]
    """A tensor that the checkpoints of this model hold, and those of no other."""

    architecture: ClassVar[tuple[str, ...]]
    """The arguments that the networks are built from."""

    stage_names: ClassVar[tuple[str, ...]]
    """Of the stages of its training, in order."""

    own_on_resume: ClassVar[tuple[str, ...]] = ()
    """Arguments that a resumed run takes from the user, unless they are the defaults; others are the checkpoint's."""

    of_this_machine: ClassVar[tuple[str, ...]] = ()
    """Arguments that no checkpoint holds."""

    pretrained_part: ClassVar[str | None] = None
    """The attribute of ``self.model`` that ``weights`` or ``pre_trained`` are loaded into, if there is one."""

    has_map: ClassVar[bool] = True
    """Whether there is a heat map."""

    tensors_of_0_1: ClassVar[Mapping[str, str]] = {}
    """Beginnings of tensors' names in checkpoints of version 0.1, and what they are now."""

    run_seed: int | None = None
    """The seed of this run, given or drawn."""

    trained_steps: torch.Tensor

    def __init__(
        self,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
        *,
        target_fpr: float | None = None,
        data: DataConfig | None = None,
    ) -> None:
        """Make the components that were not given.

        Args:
            pre_processor: As in every anomalib model.
            post_processor: As in every anomalib model.
            evaluator: As in every anomalib model.
            visualizer: As in every anomalib model.
            target_fpr: Of the default post-processor.
            data: Size and normalisation of the default pre-processor.
        """
        if pre_processor is True and data is not None:
            pre_processor = ResizeNormalize(*data)
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.register_buffer("trained_steps", torch.zeros(len(self.stage_names), dtype=torch.long))  # of each stage
        self._guard, self._runner, self._first_epoch = LossGuard(), StageRunner(), 0

    @staticmethod
    def input_data(backbone: str, image_size: tuple[int, int] | int | None) -> DataConfig:
        """Input of an encoder: its own, but for a size that the user gave."""
        data = data_config(backbone)
        return data._replace(image_size=as_pair(image_size) or data.image_size)

    # ---------------------------------------------------------------------------------- what is a model's own

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """The networks, as the arguments and the shapes of a checkpoint's tensors, if there is one, say."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """The stages of the training, as ``stage_names`` lists them."""
        raise NotImplementedError

    def initialize(self) -> None:
        """Set ``self.model`` to what a training begins with; what it has learned of normality is forgotten already."""

    # ------------------------------------------------------------------------------------------------- training

    @property
    def learning_type(self) -> LearningType:
        """Learns from normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing but the sanity check, which would score an untrained model; the user's epochs are not hidden."""
        return {"num_sanity_val_steps": 0}

    def configure_callbacks(self) -> list[Callback]:
        """The components, the table of predictions, the stages and their bar, and a checkpoint of every epoch."""
        self._runner = StageRunner()
        bar = stage_progress_bar(self.trainer, self._runner)  # behind the runner, which decides the stage
        # the user's own table with its options, if there is one; behind the post-processor in every stage
        tables = [callback for callback in self.trainer.callbacks if isinstance(callback, PredictionTable)]
        callbacks = [*super().configure_callbacks(), *(tables[:1] or [PredictionTable()]), self._runner, *bar]
        return [*callbacks, LastEpoch()] if self.trainer.checkpoint_callbacks else callbacks

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        """Write checkpoints that a killed run cannot damage; at the start of ``fit``, seed and initialise."""
        super().setup(stage)
        if type(self.trainer.strategy.checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}:  # not the user's own
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage != TrainerFn.FITTING:
            if self.trainer.is_global_zero:
                number_latest(Path(self.trainer.default_root_dir))
            return
        self._guard, self._first_epoch = LossGuard(), 0
        self._seed_run(self.hparams.get("seed"))
        if self.trainer.current_epoch == 0:  # else this trainer has trained before: it is refused, or resumes
            self.trained_steps.zero_()
            for part in self._normality:
                part.reset()
            self.initialize()
        self._runner.begin(self.stages())
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        if isinstance(self.trainer.strategy, DDPStrategy) and not trainable:  # it refuses to wrap such a module
            self.register_parameter(PLACEHOLDER, nn.Parameter(torch.zeros(())))

    def teardown(self, stage: str) -> None:
        """Be as before."""
        super().teardown(stage)
        if hasattr(self, PLACEHOLDER):
            delattr(self, PLACEHOLDER)

    @property
    def _normality(self) -> list[Normality]:
        return [module for module in self.modules() if isinstance(module, Normality)]

    @property
    def _any_size(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors whose sizes follow from the normal images."""
        return tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Normality))

    def on_fit_start(self) -> None:
        """Load the encoder's weights, unless a checkpoint has brought them."""
        self.train()  # whatever an export or the user has left
        if self.trainer.ckpt_path is None and self.pretrained_part is not None:
            encoder = getattr(self.model, self.pretrained_part)
            if self.hparams.weights is not None:
                load_weights(encoder, self.hparams.weights)
            elif self.hparams.pre_trained:
                load_pretrained(encoder, self.hparams.backbone)
        if self.hparams.get("seed") is not None and getattr(self.trainer.datamodule, "seed", 0) is None:
            logger.warning("The data's own random splits differ from run to run: give the datamodule a seed, too.")
        self._seed_epoch(self._first_epoch)  # now, because the data loader may start before the epoch does

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The current stage's."""
        return self._runner.optimizers()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer was told, else as the stage wants it."""
        if gradient_clip_val is None and self._runner.stage.gradient_clip is not None:
            gradient_clip_val, gradient_clip_algorithm = self._runner.stage.gradient_clip, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        """Draw the random numbers of this epoch, the order of the images included, whatever has happened before."""
        if self.current_epoch > 0 and not self.trainer.fit_loop.is_resuming:  # else the data loader has started already
            self._seed_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End an epoch whose stage has ended."""
        del batch, batch_idx
        return -1 if self._runner.skips_epoch else None

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """One step of the stage that the epoch belongs to.

        Raises:
            FloatingPointError: If the loss of the step before is NaN or infinite.
        """
        stage, index = self._runner.stage, self._runner.index
        result = stage.step(batch, self._runner.run)
        self.trained_steps[index] += 1  # decides what may be tested and exported
        if result is None:  # several processes have to have a loss, computed from a parameter
            placeholder = getattr(self, PLACEHOLDER, None)
            return None if placeholder is None else 1.0 * placeholder
        for name, value in {stage.loss_name: result.loss, **result.metrics}.items():
            # the bar shows the last step, which tells sooner than the mean of a long epoch
            self.log(name, value, prog_bar=True, batch_size=len(batch.image))
            self.log(f"{name}_epoch", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.image))
        where = f"stage {index + 1} ({stage.name}), epoch {self.current_epoch}, batch {batch_idx}"
        self._guard.watch(stage.loss_name, result.loss, batch, where, stage.advice)
        return result.loss

    def on_train_epoch_end(self) -> None:
        """Look at the last loss."""
        self._guard.check()

    def on_validation_start(self) -> None:
        """Look at the last loss before the model is judged and saved."""
        self._guard.check()

    def on_fit_end(self) -> None:
        """Say where the checkpoint is, which `test`, `predict` and `export` ask for."""
        path = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if path:
            logger.info("Checkpoint: %s", path)

    def _seed_run(self, seed: int | None) -> None:
        """Seed everything; without a seed, draw one that a checkpoint can name."""
        if "seed" not in self.hparams:  # nothing in the model depends on chance
            return
        if seed is None:
            seed = self.trainer.strategy.broadcast(int(torch.randint(2**31, ())))
            logger.info("seed=%d was drawn for this run.", seed)
        self.run_seed = seed
        seed_everything(seed, workers=True, verbose=False)

    def _seed_epoch(self, epoch: int) -> None:
        if self.run_seed is not None:
            seed_epoch(self.run_seed, epoch, self.global_rank)

    # ---------------------------------------------------------------------------------------------------- evaluation

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Image AUROC of the raw scores and F1 of the labels; those of pixels where there are maps and masks."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_", strict=False),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """A picture an image, with score, threshold and verdict."""
        return NoveltyVisualizer()

    @property
    def map_note(self) -> str:
        """A sentence on what the heat map shows, where it is another quantity than the score; pictures have it."""
        return ""

    def validation_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch and log the mean score of the normal validation images as ``val_score``."""
        batch = self.predict_step(batch)
        normal = batch.pred_score if batch.gt_label is None else batch.pred_score[~batch.gt_label.bool()]
        mean = normal.sum() / max(1, len(normal))
        self.log("val_score", mean, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(normal))
        return batch

    def test_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        return self.predict_step(batch)

    def predict_step(self, batch: Batch, *_args: object, **_kwargs: object) -> Batch:
        """Score a batch.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        predictions = self.model(batch.image)
        check_scores(predictions.pred_score, batch)
        return batch.update(**{name: value for name, value in predictions._asdict().items() if value is not None})

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Pre-process, score and post-process images; an untrained model is refused."""
        if not torch.compiler.is_compiling():
            self.require_training("score images")
        return super().forward(batch, *args, **kwargs)

    def on_test_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("test")

    def on_predict_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("predict")

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored, and the way out; empty if nothing is."""
        steps = self.trained_steps.tolist()
        if steps[-1] and all(part.fitted for part in self._normality):
            return ""
        if not any(steps):
            return "has not been trained: train it, or give a checkpoint of a finished training (ckpt_path)"
        last = max(index for index, count in enumerate(steps) if count)
        return (
            f"comes out of stage {last + 1} of {len(steps)} ({self.stage_names[last]}, {steps[last]} steps), before "
            "its training was complete: resume it with `anomalib fit --ckpt_path`"
        )

    def require_training(self, action: str) -> None:
        """Refuse to do something with an untrained model.

        Raises:
            RuntimeError: If it is untrained.
        """
        if self.untrained:
            msg = f"Cannot {action}: this {type(self).__name__} {self.untrained}."
            raise RuntimeError(msg)

    # ------------------------------------------------------------------------------------------ checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save this package's version and the run's seed, too, and no argument that is of this machine.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        self._guard.check()
        checkpoint["state_dict"].pop(PLACEHOLDER, None)
        check_weights(checkpoint["state_dict"])
        super().on_save_checkpoint(checkpoint)
        checkpoint.update({VERSION_KEY: __version__, MODEL_KEY: type(self).__name__})
        if self.run_seed is not None:
            checkpoint["hyper_parameters"]["seed"] = self.run_seed
        if "target_fpr" in checkpoint["hyper_parameters"]:  # of the threshold that is saved
            checkpoint["hyper_parameters"]["target_fpr"] = getattr(self.post_processor, "target_fpr", None)
        for name in self.of_this_machine:
            checkpoint["hyper_parameters"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the arguments over from the checkpoint, so that none has to be repeated.

        Raises:
            ValueError: If the checkpoint is of another model or version, or its weights hold NaN or infinity.
        """
        self._verify_content(checkpoint)
        verify_components(checkpoint, self._checkpointable_components())
        self.migrate(checkpoint)
        saved, state = self.saved_arguments(checkpoint), checkpoint["state_dict"]
        changed = {name: value for name, value in saved.items() if self.hparams.get(name) != value}
        self.hparams.update(changed)
        if changed or differing(self.state_dict(), state, self._any_size):
            self.model = self.build(state).to(self.device)
        verify_shapes(checkpoint, self.state_dict(), self._any_size)
        super().on_load_checkpoint(checkpoint)
        if self._is_fitting:
            self._runner.begin(self.stages())
            if hasattr(self, PLACEHOLDER):
                state[PLACEHOLDER] = torch.zeros(())

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

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a checkpoint of this model and version, is damaged, or holds code.
        """
        if "://" not in str(checkpoint_path):
            cls._verify_content(read_checkpoint(checkpoint_path, mmap=True))  # it is built from the arguments in it
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

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
        """Move the threshold, see `NormalQuantilePostProcessor.set_target_fpr`."""
        calibration = self.post_processor.set_target_fpr(target_fpr)
        self.hparams["target_fpr"] = target_fpr
        return calibration

    _post_training_quantization_ov = staticmethod(quantize)
