"""Teacher and cloner in two forms, for a VGG and for a ViT: loss, novelty score and map.

Source: Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021
(https://arxiv.org/abs/2011.11108); the ViT form: Sträter et al., "GeneralAD", ECCV 2024.
Shapes: B images, N patches on a (gh, gw) grid, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
import torch
from anomalib.data import InferenceBatch
from timm.models import VisionTransformer
from timm.models.vgg import VGG
from torch import Tensor, nn

from anomalib_defend.nn import vgg as vggs
from anomalib_defend.nn import vit as vits
from anomalib_defend.nn.distance import TeacherOutput, TeacherShape, feature_distance, l2_normalize
from anomalib_defend.nn.encoder import data_config
from anomalib_defend.nn.resize import check_size
from anomalib_defend.nn.score import anomaly_map

from .loss import gradient_map, layer_distance

COMPARED, SCORED = 4, 3  # last poolings of a VGG, in the loss and in the score
IMAGES_AT_ONCE = 8  # whose activations are kept for the gradient map

DEPTH, HEADS, HIDDEN, DROPOUT = 4, 8, 512, 0.2  # of the ViT form's cloner


def create_model(backbone: str, image_size: tuple[int, int], mse_weight: float) -> KDADModel:
    """The form that a backbone asks for.

    Raises:
        ValueError: If it is neither a VGG nor a plain ViT, or not for this size.
    """
    data_config(backbone)  # a wrong name is named as such
    with torch.device("meta"):
        encoder = timm.create_model(backbone, num_classes=0)
    if isinstance(encoder, VGG):
        return VggForm(backbone, image_size, mse_weight)
    if isinstance(encoder, VisionTransformer):
        return VitForm(backbone, image_size)
    msg = (
        f"backbone={backbone!r} is a {type(encoder).__name__}: KDAD takes a VGG (vgg16.tv_in1k, vgg16_bn ...) or "
        "a plain ViT (vit_base_patch16_224, deit_tiny_patch16_224 ...)."
    )
    raise ValueError(msg)


class KDADModel(nn.Module, ABC):
    """A frozen teacher and its cloner, which is trained to see normal images as the teacher does."""

    teacher: Any  # timm's methods are not those of every module
    cloner: nn.Module
    image_size: tuple[int, int]

    @property
    @abstractmethod
    def teacher_shape(self) -> TeacherShape:
        """Numbers in ``teacher_output`` of one image."""

    @abstractmethod
    def teacher_output(self, images: Tensor) -> TeacherOutput:
        """One pass of the teacher: it depends on the image alone, not on the epoch."""

    @abstractmethod
    def distill_step(self, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
        """Loss on images [B, 3, H, W], a scalar; ``teacher`` is what the teacher makes of them, if known."""

    @abstractmethod
    def reset(self) -> None:
        """Draw the cloner's weights from torch's global random state."""

    @abstractmethod
    def reset_teacher(self) -> None:
        """Draw the teacher's, where none are loaded."""

    def train(self, mode: bool = True) -> KDADModel:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self


class VggForm(KDADModel):
    """A slim VGG learns what a VGG has behind its poolings.

    Args:
        backbone: Name of a timm VGG.
        image_size: Height and width of the input, at least 32.
        mse_weight: lambda, the weight of the squared error beside the cosine distance.
    """

    def __init__(self, backbone: str, image_size: tuple[int, int], mse_weight: float = 0.01) -> None:
        super().__init__()
        self.backbone, self.image_size, self.mse_weight = backbone, image_size, mse_weight
        self.teacher = vggs.create_vgg(backbone, image_size).requires_grad_(False)
        self.cloner = vggs.slim_copy(self.teacher)
        self._sizes = [c * h * w for c, h, w in vggs.pool_shapes(self.teacher, image_size)[-COMPARED:]]
        self._draws_map = True

    @contextmanager
    def without_map(self) -> Iterator[None]:
        """Meanwhile, images get no map: an exported model has no gradient."""
        self._draws_map = False
        try:
            yield
        finally:
            self._draws_map = True

    @property
    def teacher_shape(self) -> TeacherShape:
        """All layers as one row."""
        return TeacherShape(1, 1, sum(self._sizes), attention=False)

    def reset(self) -> None:
        """Xavier-uniform convolutions."""
        vggs.init_convolutions(self.cloner, nn.init.xavier_uniform_)

    def reset_teacher(self) -> None:
        """As timm does."""
        self.teacher.load_state_dict(vggs.create_vgg(self.backbone, self.image_size).state_dict())

    @torch.no_grad()
    def teacher_output(self, images: Tensor) -> TeacherOutput:
        """All layers as one row [B, 1, sum of their sizes]."""
        check_size(images, self.image_size)
        return TeacherOutput([torch.cat(self._layers(self.teacher.features, images), dim=1).unsqueeze(1)], None)

    def distill_step(self, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
        """Mean over the images of their distance, behind poolings 2 to 5."""
        check_size(images, self.image_size)
        (row,) = (teacher or self.teacher_output(images)).layers
        layers = row.squeeze(1).split(self._sizes, dim=1)
        return layer_distance(self._layers(self.cloner, images), layers, self.mse_weight).mean()

    @torch.no_grad()
    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score (higher is more novel) and the map of its gradient.

        Args:
            images: [B, 3, H, W], resized to ``image_size`` and normalised.

        Returns:
            ``pred_score`` [B], and ``anomaly_map`` [B, 1, H, W] but for exports, neither scaled.
        """
        check_size(images, self.image_size)
        if not self._draws_map:
            return InferenceBatch(pred_score=self._score(images))
        scores, maps = [], []
        for part in images.split(IMAGES_AT_ONCE):
            # a test runs in inference mode, which keeps nothing for a gradient
            with torch.inference_mode(mode=False), torch.enable_grad():
                pixels = part.detach().clone().requires_grad_()
                score = self._score(pixels)
                (gradient,) = torch.autograd.grad(score.sum(), pixels)
            scores.append(score.detach())
            maps.append(gradient_map(gradient))
        return InferenceBatch(pred_score=torch.cat(scores), anomaly_map=torch.cat(maps))

    def _score(self, images: Tensor) -> Tensor:
        cloner, teacher = (self._layers(network, images)[-SCORED:] for network in (self.cloner, self.teacher.features))
        return layer_distance(cloner, teacher, self.mse_weight)

    @staticmethod
    def _layers(network: nn.Module, images: Tensor) -> list[Tensor]:
        """What is compared, each [B, C_k H_k W_k] float32."""
        return [output.flatten(1).float() for output in vggs.pool_outputs(network, images)[-COMPARED:]]


class VitForm(KDADModel):
    """A shallow ViT learns a ViT's patch tokens.

    Args:
        backbone: Name of a timm ViT.
        image_size: Height and width of the input; multiples of the patch size.

    Raises:
        ValueError: If its width is no multiple of 8, the cloner's heads.
    """

    cloner: VisionTransformer

    def __init__(self, backbone: str, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.image_size = backbone, image_size
        self.teacher = vits.create_vit(backbone, image_size).requires_grad_(False)
        self.grid: tuple[int, int] = tuple(self.teacher.patch_embed.grid_size)
        if self.teacher.embed_dim % HEADS:
            msg = f"backbone={backbone!r} is {self.teacher.embed_dim} wide: KDAD needs a multiple of {HEADS}."
            raise ValueError(msg)
        self.cloner = shallow_vit(self.teacher, image_size)
        self.reset()

    @property
    def teacher_shape(self) -> TeacherShape:
        """The last block's patch tokens."""
        return TeacherShape(1, self.grid[0] * self.grid[1], self.teacher.embed_dim, attention=False)

    @torch.no_grad()
    def reset(self) -> None:
        """[CLS] and position N(0, 1), the rest as torch does."""
        for module in self.cloner.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                module.reset_parameters()
        for token in (self.cloner.cls_token, self.cloner.pos_embed):
            nn.init.normal_(token)

    def reset_teacher(self) -> None:
        """As timm does."""
        self.teacher.load_state_dict(vits.create_vit(self.backbone, self.image_size).state_dict())

    @torch.no_grad()
    def teacher_output(self, images: Tensor) -> TeacherOutput:
        """Patch tokens after the final norm, of unit length, [B, N, D]."""
        check_size(images, self.image_size)
        return TeacherOutput([l2_normalize(vits.patch_tokens(self.teacher, images)[-1])], None)

    def distill_step(self, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
        """Mean over images, patches and channels of the squared difference."""
        check_size(images, self.image_size)
        return self._distances(images, teacher or self.teacher_output(images)).mean()

    @torch.no_grad()
    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score (higher is more novel), the mean of the map, and the map.

        Args:
            images: [B, 3, H, W], resized to ``image_size`` and normalised.

        Returns:
            ``pred_score`` [B] and ``anomaly_map`` [B, 1, H, W], not scaled.
        """
        check_size(images, self.image_size)
        distances = self._distances(images, self.teacher_output(images))
        return InferenceBatch(
            pred_score=distances.mean(dim=1), anomaly_map=anomaly_map(distances, self.grid, self.image_size)
        )

    def _distances(self, images: Tensor, teacher: TeacherOutput) -> Tensor:
        """Mean over the channels, [B, N]."""
        cloner = l2_normalize(vits.patch_tokens(self.cloner, images, final_norm=False)[-1])
        return feature_distance(cloner, teacher.layers[-1], "mse") / cloner.shape[-1]


def shallow_vit(teacher: VisionTransformer, image_size: tuple[int, int]) -> VisionTransformer:
    """A ViT of the teacher's width and patches, with four narrow blocks and without final norm, not yet initialised."""
    width = teacher.embed_dim
    vit = VisionTransformer(
        img_size=image_size,
        patch_size=teacher.patch_embed.patch_size,
        num_classes=0,
        embed_dim=width,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=(HIDDEN + 0.5) / width,  # timm rounds down
        proj_drop_rate=DROPOUT,
        attn_drop_rate=DROPOUT,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        weight_init="skip",
    )
    vit.norm = nn.Identity()
    return vit
