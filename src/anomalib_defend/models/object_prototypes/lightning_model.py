"""`ObjectPrototypes`: is the normal object anywhere in the image? One pass over the training images, no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch
from anomalib.data import Batch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_choices, check_ranges
from anomalib_defend.nn.views import LAYOUTS, Views, needed_size, pixels

from .stages import FitObjects
from .torch_model import Head, ObjectPrototypesModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class ObjectPrototypes(NoveltyDetectorMixin, AnomalibModule):
    """Distance of an image and its best view to prototypes of the normal images, by a frozen pretrained encoder.

    The prototypes are k-means centres of what the encoder makes of the whole training images (a ViT's [CLS], a CNN's
    pooled features). A new image is looked at as a whole and in parts, each as large as a whole image to the encoder;
    its score is the mean of the whole's distance and the smallest one: the normal object may be anywhere. Nothing is
    trained.

    Args:
        backbone: [main] Name of a timm encoder.
        pre_trained: Take timm's pretrained weights of that name; otherwise, without ``weights``, random ones.
        weights: [main] Local .safetensors or .pth file with the encoder's weights, instead of timm's; or a .ckpt file
            of ``Defend`` with the same backbone, of which the teacher is taken.
        image_size: [main] Height and width at which the encoder sees each view (one number for both); its own by
            default. Images are resized to what the smallest view needs.
        views: [main] What is looked at: "whole", "whole+centre", or with the corners, for a little more on scenes,
            "whole+corners", "whole+centre+corners". Each view costs a pass of the encoder.
        head: [main] What views are compared with: "prototypes", or the nearest normal images ("neighbors").
        num_prototypes: Prototypes for each normal category of the data.
        num_neighbors: k of the "neighbors"; the distance is the mean one to the k nearest.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.view_boxes"
    architecture = ("backbone", "views", "head", "num_prototypes", "num_neighbors")
    stage_names = (FitObjects.name,)
    pretrained_part = "encoder"
    model: ObjectPrototypesModel

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        views: Views = "whole+centre",
        head: Head = "prototypes",
        num_prototypes: int = 5,
        num_neighbors: int = 2,
        target_fpr: float | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(num_prototypes=(num_prototypes, 1, None), num_neighbors=(num_neighbors, 1, None))
        check_choices(views=(views, get_args(Views)), head=(head, get_args(Head)))
        data = self.input_data(backbone, image_size)
        data = data._replace(image_size=needed_size(data.image_size, LAYOUTS[views]))
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> ObjectPrototypesModel:
        """Encoder and what is normal."""
        del state  # prototypes and a memory of any size are loaded
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        return ObjectPrototypesModel(image_size=size, **{name: self.hparams[name] for name in self.architecture})

    def stages(self) -> list[Stage]:
        """One pass over the normal images."""
        return [FitObjects(self.model, self.hparams)]

    @property
    def map_note(self) -> str:
        """The map has as many values as there are views."""
        return "Each place shows the view with it that is nearest to normal."

    def migrate(self, checkpoint: dict[str, Any]) -> None:
        """Of a checkpoint's views, load those that are asked for (``load_from_checkpoint(path, views="whole")``).

        Input and threshold stay those of all of them: an image that a part of the views calls normal is normal.

        Raises:
            ValueError: If others are asked for, with which no threshold was set.
        """
        state, views = checkpoint["state_dict"], checkpoint["hyper_parameters"]["views"]
        boxes = torch.tensor(LAYOUTS[views])
        saved = state[self.distinctive_tensor].tolist()
        if any(box not in saved for box in boxes.tolist()):
            msg = f"views={views!r} has views that ckpt_path was not trained with: train anew, or leave views= out."
            raise ValueError(msg)
        state[self.distinctive_tensor] = boxes

    def predict_step(self, batch: Batch, *_args: object, **_kwargs: object) -> Batch:
        """Score a batch, and say in its ``box`` where in the image's file the best view lies.

        The files' heights and widths are ``file_size`` of the batch, where whoever has read them knows; else the files
        are asked, and one that is gone has no box.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        distances = self.model.distances(batch.image)
        size = (batch.image.shape[-2], batch.image.shape[-1])
        batch = self.with_predictions(batch, self.model.predictions(distances, size))
        boxes = [self.model.boxes[index] for index in distances.argmin(dim=1).tolist()]
        sizes = getattr(batch, "file_size", None) or map(file_size, batch.image_path or [None] * len(boxes))
        batch.box = [None if size is None else pixels(box, size) for box, size in zip(boxes, sizes, strict=True)]
        return batch


def file_size(path: str | None) -> tuple[int, int] | None:
    """Height and width of an image's file; ``None`` without one that can be read."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:  # reads the header alone
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # it was read once, and is gone since
        return None
