"""`Defend`: both stages in one fit, checkpoints that need nothing else, and anomalib's evaluation and export."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, get_args

import torch
from anomalib.data import Batch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_defend.models.components import TrainedDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.nn.pretrained import load_pretrained, load_weights
from anomalib_defend.nn.vit import create_vit, data_config
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.pre_processing import ResizeNormalize

from .loss import DistillLoss, FeatureNorm
from .stages import StageSwitch, TeacherPass, make_optimizer, num_normal_categories, plan_stages
from .teacher_cache import CachePlace, TeacherCache
from .torch_model import DefendModel, Masking, Score

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

DEFAULT_NUM_PROTOTYPES = 5


class Defend(TrainedDetectorMixin, AnomalibModule):
    """Multi-object novelty detection: is the normal object still in the image?

    Stage 1 (DEFEND, ``dense_epochs``) fine-tunes the last blocks of a pretrained ViT teacher on the normal images, with
    a dense prototype loss. Stage 2 (MKD, ``distill_epochs``) distils it into a randomly initialised student that sees
    only the patches that the teacher attends to. The score is the distance between their normalised patch features.

    Source: Salehi et al., "Redefining Normal", ACCV 2024. Defaults are the paper's best settings.

    Args:
        backbone: Name of a timm ViT, for teacher and student.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: Local .safetensors or .pth file with the teacher's weights, instead of timm's.
        image_size: Input height and width (one number for both); the encoder's own by default.
        dense_epochs: Epochs of stage 1; 0 leaves it out.
        distill_epochs: Epochs of stage 2.
        num_prototypes: K of stage 1. By default twice the datamodule's ``num_normal_categories``, else 5.
        num_tuned_blocks: Last blocks of the teacher that stage 1 trains.
        num_crops: Crops per image in stage 1.
        crop_size: Size of the crops; by default the multiple of the patch size nearest to 3/7 of the input.
        random_view: Take the crops from a random resized view, not from the whole image.
        hard_targets: Compare crops with the most likely prototype, not with the soft assignment.
        dense_lr: Learning rate of the teacher's blocks in stage 1.
        head_lr: Learning rate of projection head and prototypes in stage 1.
        masking: Patches that the student sees: "guided" by the teacher's attention, "random", or all ("none").
        mask_ratio: Share of the patches hidden from the student.
        distill_layers: Number of last blocks that are distilled (5 in the pixel variant).
        distill_loss: "mse", or "smooth_l1" (pixel variant).
        feature_norm: "l2" on both sides; "layer_norm" on the teacher with a linear head on the student (pixel variant);
            or "none".
        student_lr: Learning rate of stage 2.
        score: Of an image: "distance", the paper's mean distance of student and teacher; or "prototypes", how far the
            teacher's [CLS] is from k-means prototypes of the normal training images. The map shows the distance.
        target_fpr: Share of normal images that may be called novel; sets the threshold on the validation images.
        teacher_cache: Where the teacher's features of the training images are kept over the epochs of stage 2: "ram",
            "disk" (below ``default_root_dir``), "off", or "auto" for the first of them where there is ample room.
        seed: Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without it one
            is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    landmark = "model.head.prototypes"
    architecture = (
        "backbone", "num_tuned_blocks", "num_crops", "crop_size", "random_view", "hard_targets",
        "masking", "mask_ratio", "distill_layers", "distill_loss", "feature_norm", "score",
    )  # fmt: skip
    of_this_run = ("distill_epochs",)
    model: DefendModel
    trained_steps: torch.Tensor
    teacher_cache: TeacherCache | None = None

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        dense_epochs: int = 3,
        distill_epochs: int = 10,
        num_prototypes: int | None = None,
        num_tuned_blocks: int = 2,
        num_crops: int = 4,
        crop_size: tuple[int, int] | int | None = None,
        random_view: bool = True,
        hard_targets: bool = True,
        dense_lr: float = 1e-5,
        head_lr: float = 1e-4,
        masking: Masking = "guided",
        mask_ratio: float = 0.5,
        distill_layers: int = 1,
        distill_loss: DistillLoss = "mse",
        feature_norm: FeatureNorm = "l2",
        student_lr: float = 1e-5,
        score: Score = "distance",
        target_fpr: float = 0.05,
        teacher_cache: CachePlace = "auto",
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(
            dense_epochs=(dense_epochs, 0, None),
            distill_epochs=(distill_epochs, 1, None),
            mask_ratio=(mask_ratio, 0, 0.99),
            num_prototypes=(num_prototypes, 1, None),
            num_crops=(num_crops, 1, None),
            num_tuned_blocks=(num_tuned_blocks, 1 if dense_epochs else 0, None),
        )
        for name, value, choices in (("teacher_cache", teacher_cache, CachePlace), ("score", score, Score)):
            if value not in get_args(choices):
                msg = f"{name}={value!r} must be one of {', '.join(map(repr, get_args(choices)))}."
                raise ValueError(msg)
        data = data_config(backbone)
        size = as_pair(image_size) or data["image_size"]
        if pre_processor is True:
            pre_processor = ResizeNormalize(size, data["mean"], data["std"])
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = self._build_model(num_prototypes or DEFAULT_NUM_PROTOTYPES)
        self.register_buffer("trained_steps", torch.zeros(2, dtype=torch.long))  # of stage 1 and 2
        self.stage_epochs = (dense_epochs, distill_epochs)
        self._usage: list[torch.Tensor] = []

    # ------------------------------------------------------------------------------------------------- construction

    def _build_model(self, num_prototypes: int, num_normal_prototypes: int = 1) -> DefendModel:
        hparams = {name: self.hparams[name] for name in self.architecture}
        size = as_pair(self.hparams.image_size) or data_config(self.hparams.backbone)["image_size"]
        hparams["crop_size"] = as_pair(hparams["crop_size"])
        if self.hparams.dense_epochs == 0:
            hparams["num_tuned_blocks"] = 0
        with torch.device("meta"):  # the values come with ``fit`` or a checkpoint: a command line starts without them
            model = DefendModel(
                image_size=size, num_prototypes=num_prototypes, num_normal_prototypes=num_normal_prototypes, **hparams
            )
        return model.to_empty(device=self.device)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing but the sanity check, which would score an untrained student; the user's epochs are not hidden."""
        return {"num_sanity_val_steps": 0}

    # ------------------------------------------------------------------------------------------------------- fitting

    def configure_callbacks(self) -> list[Callback]:
        """The components, the table of predictions, the stages, and a checkpoint of every epoch."""
        return [*super().configure_callbacks(), StageSwitch(), TeacherPass(self.hparams.teacher_cache)]

    def initialize(self) -> None:
        """Choose K and initialise the student; the teacher, too, if nothing is loaded into it."""
        num_prototypes = self._choose_num_prototypes()
        if num_prototypes != len(self.model.head.prototypes):
            self.model = self._build_model(num_prototypes)
        self.model.reset_student()
        if self.hparams.weights is None and not self.hparams.pre_trained:
            self.model.teacher.load_state_dict(create_vit(self.hparams.backbone, self.model.image_size).state_dict())
        self.trained_steps.zero_()

    def on_fit_start(self) -> None:
        """Fix the epochs and, unless a checkpoint has brought it, load the teacher."""
        self._refuse_finished_engine()
        self.stage_epochs = plan_stages(self.trainer, self.hparams.dense_epochs, self.hparams.distill_epochs)
        if self.trainer.ckpt_path is None:
            self._load_teacher()
        self._warn_of_unseeded_data()
        self._seed_first_epoch()

    def _load_teacher(self) -> None:
        if self.hparams.weights is not None:
            load_weights(self.model.teacher, self.hparams.weights)
        elif self.hparams.pre_trained:
            load_pretrained(self.model.teacher, self.hparams.backbone)

    def _choose_num_prototypes(self) -> int:
        if self.hparams.num_prototypes is not None:
            return self.hparams.num_prototypes
        categories = num_normal_categories(self.trainer)
        number = 2 * categories if categories else DEFAULT_NUM_PROTOTYPES
        if self.hparams.dense_epochs:
            reason = f"twice the {categories} normal categories of the data" if categories else "the default"
            logger.info("num_prototypes=%d, %s.", number, reason)
        return number

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW with a group for each stage and part: parameters without gradient are left as they are."""
        rates = {name: self.hparams[name] for name in ("dense_lr", "head_lr", "student_lr")}
        return make_optimizer(self.model, **rates)

    @property
    def in_dense_stage(self) -> bool:
        """Whether the current epoch belongs to stage 1."""
        return self.current_epoch < self.stage_epochs[0]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One step of the stage that the epoch belongs to.

        Raises:
            FloatingPointError: If the loss of the step before is NaN or infinite.
        """
        self.trained_steps[0 if self.in_dense_stage else 1] += 1  # decides what may be tested and exported
        if self.in_dense_stage:
            loss, usage = self.model.dense_step(batch.image)
            self._usage.append(usage)
            self._log_step("dense_loss", loss, batch)
            self._log_step("prototype_perplexity", usage, batch)
            term, stage, rates = "dense_loss", "stage 1 (dense fine-tuning)", "dense_lr and head_lr"
        else:
            cache = self.teacher_cache
            teacher = None if cache is None else cache.read(batch.image_path, batch.image.device)
            loss = self.model.distill_step(batch.image, teacher)
            self._log_step("distill_loss", loss, batch)
            term, stage, rates = "distill_loss", "stage 2 (distillation)", "student_lr"
        where = f"{stage}, epoch {self.current_epoch}, batch {batch_idx}"
        self._guard.watch(term, loss, batch, where, f"lower {rates}, or train with --trainer.precision 32")
        return loss

    def _log_step(self, name: str, value: torch.Tensor, batch: Batch) -> None:
        # the bar shows the last step, which tells sooner than the mean of a long epoch
        self.log(name, value, prog_bar=True, batch_size=len(batch.image))
        self.log(f"{name}_epoch", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.image))

    def on_train_epoch_end(self) -> None:
        """Look at the last loss, and warn when the prototypes collapse."""
        super().on_train_epoch_end()
        if not self._usage:
            return
        usage, number = torch.stack(self._usage).mean().item(), len(self.model.head.prototypes)
        self._usage.clear()
        if number > 1 and usage < max(1.05, 0.1 * number):
            logger.warning(
                "Only %.1f of %d prototypes are in use: stage 1 has collapsed and may not help. Try a lower dense_lr, "
                "another num_prototypes, or dense_epochs=0.",
                usage,
                number,
            )

    # ---------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch and log the mean score of the normal validation images as ``val_score``."""
        batch = self.predict_step(batch)
        normal = batch.pred_score if batch.gt_label is None else batch.pred_score[~batch.gt_label.bool()]
        mean = normal.sum() / max(1, len(normal))
        self.log("val_score", mean, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(normal))
        return batch

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored; empty once the student has been trained."""
        if self.trained_steps[1] > 0:
            return ""
        if self.trained_steps[0] > 0:
            return (
                f"comes out of stage 1 (dense fine-tuning, {int(self.trained_steps[0])} steps), before its student is "
                "trained in stage 2 (distillation); resume the training with `anomalib fit --ckpt_path`"
            )
        return "has not been trained; give a checkpoint of a finished training (ckpt_path)"

    # ------------------------------------------------------------------------------------------ checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, too, and no argument that is of this machine, not of the model.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"].pop("teacher_cache", None)

    def saved_arguments(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint brings, to test it or to go on from it with other ``distill_epochs``."""
        saved = super().saved_arguments(checkpoint)
        if self._is_fitting:
            logger.info("Resuming with the checkpoint's arguments and distill_epochs=%d.", saved["distill_epochs"])
        elif self.trained_steps.sum() > checkpoint["state_dict"]["trained_steps"].sum():
            logger.warning("The weights trained so far are replaced by those of ckpt_path, which has had fewer steps.")
        return saved

    def build(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make the networks anew, with as many prototypes as were trained."""
        normal = len(state.get("model.normal_prototypes.centers", [None]))
        self.model = self._build_model(len(state[self.landmark]), normal)
