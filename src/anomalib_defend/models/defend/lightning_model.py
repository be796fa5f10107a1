"""`Defend`: what is its own about the contract that all models share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, get_args

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_choices, check_ranges
from anomalib_defend.models.components.teacher_cache import CachePlace
from anomalib_defend.nn.distance import DistillLoss, FeatureNorm
from anomalib_defend.nn.views import LAYOUTS, Views, needed_size
from anomalib_defend.nn.vit import create_vit

from .stages import DenseStage, DistillStage
from .torch_model import DefendModel, Masking, Score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage

logger = logging.getLogger(__name__)

DEFAULT_NUM_PROTOTYPES = 5
PROTOTYPES = (
    "is a model of its own now: train ObjectPrototypes (`anomalib train --model ObjectPrototypes ...`), which takes "
    "one pass over the training images"
)


class Defend(NoveltyDetectorMixin, AnomalibModule):
    """Multi-object novelty detection: is the normal object still in the image?

    Stage 1 (DEFEND, ``dense_epochs``) fine-tunes the last blocks of a pretrained ViT teacher on the normal images, with
    a dense prototype loss. Stage 2 (MKD, ``distill_epochs``) distils it into a randomly initialised student that sees
    only the patches that the teacher attends to. The score is the distance between their normalised patch features.

    Source: Salehi et al., "Redefining Normal", ACCV 2024 (https://arxiv.org/abs/2412.11148). Defaults are the paper's
    best settings.

    Args:
        backbone: [main] Name of a timm ViT, for teacher and student.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: [main] Local .safetensors or .pth file with the teacher's weights, instead of timm's.
        image_size: [main] Input height and width (one number for both); the encoder's own by default.
        dense_epochs: [main] Epochs of stage 1; 0 leaves it out.
        distill_epochs: [main] Epochs of stage 2.
        num_prototypes: Dense prototypes of stage 1; by default twice the data's ``num_normal_categories``, else 5.
        num_tuned_blocks: Last blocks of the teacher that stage 1 trains.
        num_crops: Crops per image in stage 1.
        crop_size: Size of the crops; by default the multiple of the patch size nearest to 3/7 of the input.
        random_view: Take the crops from a random resized view, not from the whole image.
        hard_targets: Compare crops with the most likely dense prototype, not with the soft assignment.
        dense_lr: Learning rate of the teacher's blocks in stage 1.
        head_lr: Learning rate of projection head and dense prototypes in stage 1.
        masking: Patches that the student sees: "guided" by the teacher's attention, "random", or all ("none").
        mask_ratio: Share of the patches hidden from the student.
        distill_layers: Number of last blocks that are distilled (5 in the pixel variant).
        distill_loss: "mse", or "smooth_l1" (pixel variant).
        feature_norm: "l2" on both sides; "layer_norm" on the teacher with a linear head on the student (pixel variant);
            or "none".
        student_lr: Learning rate of stage 2.
        score: [main] Of an image: "distance", the mean over patches of the distance of student and teacher; or
            "attended_distance", the mean weighted by the attention of the teacher's [CLS]. The map shows what the score
            is the mean of.
        attention_block: Number of the teacher's block, from 1, whose [CLS] attention guides the mask and weights
            an attended distance; the last one by default, as in the paper.
        views: At test time: "whole", the whole image; or with it "+centre" its centre, "+corners" its four corners, or
            both, each 0.6 of the sides. The smallest score counts; images are read at 1/0.6 of ``image_size`` then.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        teacher_cache: Where the teacher's features of the training images are kept over the epochs of stage 2: "ram",
            "disk" (below ``default_root_dir``), "off", or "auto" for the first of them where there is ample room.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.head.prototypes"
    architecture = (
        "backbone", "num_tuned_blocks", "num_crops", "crop_size", "random_view", "hard_targets",
        "masking", "mask_ratio", "distill_layers", "distill_loss", "feature_norm", "score", "attention_block", "views",
    )  # fmt: skip
    stage_names = (DenseStage.name, DistillStage.name)
    own_on_resume = ("distill_epochs",)
    of_this_machine = ("teacher_cache",)
    pretrained_part = "teacher"
    model: DefendModel

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
        score: Score | str = "distance",  # the command line, too, is to be told where "prototypes" is
        attention_block: int | None = None,
        views: Views = "whole",
        target_fpr: float | None = None,
        teacher_cache: CachePlace = "auto",
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        if score == "prototypes":
            msg = f"score='prototypes' {PROTOTYPES}."
            raise ValueError(msg)
        check_ranges(
            dense_epochs=(dense_epochs, 0, None),
            distill_epochs=(distill_epochs, 1, None),
            mask_ratio=(mask_ratio, 0, 0.99),
            num_prototypes=(num_prototypes, 1, None),
            num_crops=(num_crops, 1, None),
            num_tuned_blocks=(num_tuned_blocks, 1 if dense_epochs else 0, None),
        )
        check_choices(
            masking=(masking, get_args(Masking)),
            distill_loss=(distill_loss, get_args(DistillLoss)),
            feature_norm=(feature_norm, get_args(FeatureNorm)),
            score=(score, get_args(Score)),
            views=(views, get_args(Views)),
            teacher_cache=(teacher_cache, get_args(CachePlace)),
        )
        data = self.input_data(backbone, image_size)
        data = data._replace(image_size=needed_size(data.image_size, LAYOUTS[views]))
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    @property
    def map_note(self) -> str:
        """With several views the score is not the mean of the map."""
        several = self.hparams.views != "whole"
        return "The map shows the smallest distance of the views at each place; the score is the best view's." * several

    @classmethod
    def _verify_content(cls, checkpoint: dict[str, Any]) -> None:
        for name, default in (("attention_block", None), ("views", "whole")):  # older ones know these alone
            checkpoint.get("hyper_parameters", {}).setdefault(name, default)
        super()._verify_content(checkpoint)
        of_prototypes = ("model.normality.", "model.normal_prototypes.")  # of this version, of 0.1
        if any(name.startswith(of_prototypes) for name in checkpoint["state_dict"]):
            msg = f"ckpt_path is of score='prototypes', which {PROTOTYPES}; its weights= takes this file's teacher."
            raise ValueError(msg)

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> DefendModel:
        """The networks, with as many prototypes as were trained."""
        number = self.hparams.num_prototypes or DEFAULT_NUM_PROTOTYPES
        return self._build(number if state is None else len(state[self.distinctive_tensor]))

    def _build(self, num_prototypes: int) -> DefendModel:
        hparams = {name: self.hparams[name] for name in self.architecture}
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        hparams["crop_size"] = as_pair(hparams["crop_size"])
        if self.hparams.dense_epochs == 0:
            hparams["num_tuned_blocks"] = 0
        with torch.device("meta"):  # the values come with ``fit`` or a checkpoint: a command line starts without them
            model = DefendModel(image_size=size, num_prototypes=num_prototypes, **hparams)
        return model.to_empty(device=self.device)

    def stages(self) -> list[Stage]:
        """DEFEND and MKD."""
        return [DenseStage(self.model, self.hparams), DistillStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Choose K and initialise the student; the teacher, too, if nothing is loaded into it."""
        num_prototypes = self._choose_num_prototypes()
        if num_prototypes != len(self.model.head.prototypes):
            self.model = self._build(num_prototypes)
        self.model.reset_student()
        if self.hparams.weights is None and not self.hparams.pre_trained:
            self.model.teacher.load_state_dict(create_vit(self.hparams.backbone, self.model.image_size).state_dict())

    def _choose_num_prototypes(self) -> int:
        if self.hparams.num_prototypes is not None:
            return self.hparams.num_prototypes
        categories = getattr(getattr(self.trainer, "datamodule", None), "num_normal_categories", None)
        number = 2 * categories if categories else DEFAULT_NUM_PROTOTYPES
        if self.hparams.dense_epochs:
            reason = f"twice the {categories} normal categories of the data" if categories else "the default"
            logger.info("num_prototypes=%d, %s.", number, reason)
        return number
