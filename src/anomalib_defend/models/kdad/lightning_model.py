"""`KDAD`: what is its own about the contract that all models share."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_choices, check_ranges
from anomalib_defend.models.components.teacher_cache import CachePlace

from .stages import DistillStage
from .torch_model import KDADModel, VggForm, create_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage

logger = logging.getLogger(__name__)


class KDAD(NoveltyDetectorMixin, AnomalibModule):
    """Distillation of a frozen pretrained encoder into a small cloner, which fails to follow it on novel images.

    The backbone decides the form. VGG: the features behind poolings 2 to 5, by cosine distance and squared error; the
    map is the gradient of the score, which no export to ONNX or OpenVINO has. ViT: the patch tokens, of unit length;
    the map is their distance.

    Source: Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021
    (https://arxiv.org/abs/2011.11108); the ViT form is that of the tables of GeneralAD (ECCV 2024).

    Args:
        backbone: [main] Name of a timm VGG, or of a plain timm ViT.
        pre_trained: Take timm's pretrained weights of that name.
        weights: [main] Local .safetensors or .pth file with the teacher's weights, instead of timm's.
        image_size: [main] Input height and width (one number for both); the encoder's own by default.
        epochs: [main] Epochs; 200 for a VGG and 10 for a ViT by default.
        lr: Learning rate; halved after 10 and 20 epochs for a ViT.
        mse_weight: Weight of the squared error beside the cosine distance, for a VGG (the paper: 0.5 for MVTec AD).
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        teacher_cache: Where the teacher's features of the training images are kept over the epochs: "ram", "disk"
            (below ``default_root_dir``), "off", or "auto" for the first of them where there is ample room.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.cloner."
    architecture = ("backbone", "mse_weight")
    stage_names = (DistillStage.name,)
    own_on_resume = ("epochs",)
    of_this_machine = ("teacher_cache",)
    pretrained_part = "teacher"
    model: KDADModel

    def __init__(
        self,
        backbone: str = "vgg16.tv_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        epochs: int | None = None,
        lr: float = 1e-3,
        mse_weight: float = 0.01,
        target_fpr: float | None = None,
        teacher_cache: CachePlace = "auto",
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(epochs=(epochs, 1, None), lr=(lr, 0, None), mse_weight=(mse_weight, 0, None))
        check_choices(teacher_cache=(teacher_cache, get_args(CachePlace)))
        data = self.input_data(backbone, image_size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    @property
    def map_note(self) -> str:
        """Of the VGG form, the map is no part of the score."""
        return "The map shows how strongly the score depends on each pixel." if self._is_vgg else ""

    @property
    def _is_vgg(self) -> bool:
        return isinstance(self.model, VggForm)

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> KDADModel:
        """Teacher and cloner."""
        del state
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        with torch.device("meta"):  # the values come with ``fit`` or a checkpoint: a command line starts without them
            model = create_model(self.hparams.backbone, size, self.hparams.mse_weight)
        return model.to_empty(device=self.device)

    def stages(self) -> list[Stage]:
        """The distillation."""
        return [DistillStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Draw the cloner's weights; the teacher's, too, if nothing is loaded into it."""
        self.model.reset()
        if self.hparams.weights is None and not self.hparams.pre_trained:
            self.model.reset_teacher()

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does, for OpenVINO, too; the VGG form without its map."""
        if isinstance(self.model, VggForm):
            logger.warning(
                "The exported model has no heat map: that of KDAD with a VGG is a gradient of the score. It is in the "
                "engine's predictions, and with a ViT as backbone there is one in exports, too."
            )
        without_map = self.model.without_map() if isinstance(self.model, VggForm) else nullcontext()
        with without_map:
            return super().to_onnx(export_root, *args, **kwargs)
