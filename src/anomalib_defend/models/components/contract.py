"""What a model of this package says of itself: the arguments and methods that are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import ImageVisualizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from anomalib_defend.nn.encoder import DataConfig, data_config
from anomalib_defend.nn.normality import Normality
from anomalib_defend.post_processing import (
    NormalQuantilePostProcessor,
)
from anomalib_defend.post_processing.processes import DataOrder
from anomalib_defend.pre_processing import ResizeNormalize

from .arguments import as_pair
from .guard import LossGuard
from .stage_runner import StageRunner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor

    from .own_arguments import OwnArguments
    from .stage import Stage


class Contract(AnomalibModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """What a model names: the attributes below, ``build`` and ``stages``.

    Its ``__init__`` checks its arguments, calls this one's, and sets ``self.model`` to a network whose ``forward``
    gives an ``InferenceBatch``.
    """

    distinctive_tensor: ClassVar[str]
    """A tensor, or how tensors' names begin, that the checkpoints of this model hold, and those of no other."""

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

    normal: Mapping[str, Any] | None = None
    """What the training took for normal, as its datamodule names it, see `description.normal_of`."""

    checkpoint_file: Path | None = None
    """Where the weights as they are, with their threshold, are saved, as far as is known."""

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

        Raises:
            ValueError: If ``target_fpr`` is given beside another post-processor, or none.
        """
        if pre_processor is True and data is not None:
            pre_processor = ResizeNormalize(*data)
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        elif target_fpr is not None:
            msg = (
                f"target_fpr={target_fpr} is an argument of the default post-processor: beside another one, or none, "
                "it would have no effect. Leave it out, or give it to yours (model.post_processor.target_fpr)."
            )
            raise ValueError(msg)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.register_buffer("trained_steps", torch.zeros(len(self.stage_names), dtype=torch.long))  # of each stage
        self._guard, self._runner, self._first_epoch = LossGuard(), StageRunner(), 0
        self._order = DataOrder()
        self._own: OwnArguments | None = None  # where a checkpoint's are in their place
        self._may_have_threshold = False

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

    @property
    def learning_type(self) -> LearningType:
        """Learns from normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing but the sanity check, which would score an untrained model; the user's epochs are not hidden."""
        return {"num_sanity_val_steps": 0}

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    @property
    def _normality(self) -> list[Normality]:
        return [module for module in self.modules() if isinstance(module, Normality)]

    @property
    def _any_size(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors whose sizes follow from the normal images."""
        return tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Normality))
