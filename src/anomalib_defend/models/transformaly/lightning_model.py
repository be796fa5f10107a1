"""`Transformaly`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_choices, check_ranges
from anomalib_defend.nn.vit import create_vit

from .stages import ImitationStage
from .torch_model import Score, TransformalyModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class Transformaly(NoveltyDetectorMixin, AnomalibModule):
    """Students of a ViT's blocks, whose errors on an image are as telling as the ViT's own features of it.

    Each block of a frozen pretrained ViT gets a student, which learns to do the same on normal images. The score is the
    negative log density of the students' errors plus that of the ViT's [CLS] feature, both under Gaussians of the
    normal images. There is no memory: what was learned of them does not grow with their number.

    Source: Cohen, Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR workshops 2022
    (https://arxiv.org/abs/2112.04185). The defaults are the paper's.

    Args:
        backbone: [main] Name of a timm ViT, the teacher.
        pre_trained: Take timm's pretrained weights of that name; otherwise, without ``weights``, random ones.
        weights: [main] Local .safetensors or .pth file with the teacher's weights, instead of timm's.
        image_size: [main] Input height and width (one number for both); the encoder's own by default.
        epochs: [main] Epochs.
        lr: Learning rate.
        dropout: In training, of attention weights and behind every linear layer, in students and teacher alike. The
            published code had 0.1.
        score: [main] "both" densities, that of the students' "errors", or that of the "features". The map shows the
            errors.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.normality.of_errors.mean"
    architecture = ("backbone", "score", "dropout")
    stage_names = (ImitationStage.name,)
    own_on_resume = ("epochs",)
    pretrained_part = "teacher"
    model: TransformalyModel

    def __init__(
        self,
        backbone: str = "vit_base_patch16_384.orig_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        epochs: int = 30,
        lr: float = 1e-4,
        dropout: float = 0.0,
        score: Score = "both",
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(epochs=(epochs, 1, None), lr=(lr, 0, None), dropout=(dropout, 0, 0.99))
        check_choices(score=(score, get_args(Score)))
        data = self.input_data(backbone, image_size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    @property
    def map_note(self) -> str:
        """The map has one of the score's two halves alone."""
        return "The map shows where the students err, which is a part of the score."

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> TransformalyModel:
        """Teacher and students."""
        del state  # densities of any size are loaded
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        arguments = {name: self.hparams[name] for name in self.architecture}
        with torch.device("meta"):  # the values come with ``fit`` or a checkpoint: a command line starts without them
            model = TransformalyModel(image_size=size, **arguments)
        model = model.to_empty(device=self.device)
        model.normality.reset()
        return model

    def stages(self) -> list[Stage]:
        """The imitation."""
        return [ImitationStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Draw the students' weights; the teacher's, too, if nothing is loaded into it."""
        self.model.reset_students()
        if self.hparams.weights is None and not self.hparams.pre_trained:
            teacher = create_vit(self.hparams.backbone, self.model.image_size)
            self.model.teacher.load_state_dict(teacher.state_dict())
