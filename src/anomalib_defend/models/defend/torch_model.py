"""Teacher, student and dense prototypes: the two stages of DEFEND + MKD, and the novelty score.

Source: Salehi et al., "Redefining Normal: A Novel Object-Level Approach for Multi-Object Novelty Detection", ACCV 2024
(https://arxiv.org/abs/2412.11148).
Shapes: B images, N patches on a (gh, gw) grid, D channels, n crops per image, K dense prototypes.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn import vit as vits
from anomalib_defend.nn.crops import crop_images, crop_targets, sample_boxes
from anomalib_defend.nn.dense_prototypes import PrototypeHead, similarity, upsampled_similarity
from anomalib_defend.nn.distance import (
    DistillLoss,
    FeatureNorm,
    TeacherOutput,
    TeacherShape,
    attended,
    feature_distance,
    normalize_features,
)
from anomalib_defend.nn.masking import num_kept, sample_patches
from anomalib_defend.nn.score import map_of_views
from anomalib_defend.nn.sinkhorn import perplexity, sinkhorn
from anomalib_defend.nn.views import LAYOUTS, Box, Views, check_views, cut, needed_size

from .loss import dense_loss

logger = logging.getLogger(__name__)

Masking = Literal["guided", "random", "none"]
Score = Literal["distance", "attended_distance"]

VIEW_SCALE = (0.25, 1.0)
CROP_SCALE = (0.1, 0.3)
DROP_PATH_RATE = 0.1


class DefendModel(nn.Module):
    """The networks and what one step of each stage computes.

    Args:
        backbone: Name of a timm ViT, for teacher and student.
        image_size: Height and width at which the networks see an image or a view; multiples of the patch size.
        num_prototypes: K, dense prototypes of stage 1.
        num_tuned_blocks: Last blocks of the teacher that stage 1 trains; 0 freezes all of it (no stage 1).
        num_crops: Crops per image, n.
        crop_size: Height and width that crops are resized to. The multiple of the patch size nearest to 3/7 of the
            input if ``None``.
        random_view: Take the crops from a random resized view of the image, not from the whole image.
        hard_targets: Compare crops with the most likely dense prototype, not with the soft assignment.
        masking: Which patches the student sees: drawn by the teacher's attention, uniformly, or all.
        mask_ratio: Share of the patches that the student does not see.
        distill_layers: Number of last blocks whose patch tokens are distilled.
        distill_loss: Squared error, or smooth L1 (pixel variant).
        feature_norm: Compare L2-normalised tokens, or the teacher's LayerNorm-ed ones with a linear head of the
            student (pixel variant), or tokens as they are.
        score: Of an image: the mean over patches of the distance of student and teacher, plain, or weighted by the
            attention of the teacher's [CLS].
        attention_block: Number of the teacher's block, from 1, whose [CLS] attention guides the mask and weights the
            score; the last one if ``None``.
        views: Layout of the views at test time, whose smallest score is the image's. Images come at ``resized_size``,
            at which the smallest view has ``image_size``; stage 1 and 2 see them whole.

    Raises:
        ValueError: If an argument does not fit the encoder; names both.
    """

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        num_prototypes: int = 5,
        num_tuned_blocks: int = 2,
        num_crops: int = 4,
        crop_size: tuple[int, int] | None = None,
        random_view: bool = True,
        hard_targets: bool = True,
        masking: Masking = "guided",
        mask_ratio: float = 0.5,
        distill_layers: int = 1,
        distill_loss: DistillLoss = "mse",
        feature_norm: FeatureNorm = "l2",
        score: Score = "distance",
        attention_block: int | None = None,
        views: Views = "whole",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size: tuple[int, int] = (image_size[0], image_size[1])
        self.boxes: tuple[Box, ...] = LAYOUTS[views]
        self.resized_size = needed_size(self.image_size, self.boxes)
        self.num_crops = num_crops
        self.random_view = random_view
        self.hard_targets = hard_targets
        self.mask_ratio = mask_ratio
        self.distill_layers = distill_layers
        self.distill_loss: DistillLoss = distill_loss
        self.feature_norm: FeatureNorm = feature_norm
        self.score: Score = score

        self.teacher = vits.create_vit(backbone, image_size)
        self.student = vits.create_vit(backbone, image_size, drop_path_rate=DROP_PATH_RATE)
        self.head = PrototypeHead(self.teacher.embed_dim, num_prototypes)
        # the pixel variant compares un-normalised student tokens with LayerNorm-ed teacher tokens through a linear map
        dim = self.student.embed_dim
        mapped = feature_norm == "layer_norm"
        self.student_heads = nn.ModuleList(
            nn.Linear(dim, dim) if mapped else nn.Identity() for _ in range(distill_layers)
        )
        self.student.fc_norm.requires_grad_(not mapped)
        self.student.norm.requires_grad_(not mapped)  # it takes no part then

        self.grid: tuple[int, int] = tuple(self.teacher.patch_embed.grid_size)
        self.patch_size: tuple[int, int] = tuple(self.teacher.patch_embed.patch_size)
        height, width = (
            max(1, round(side * 3 / 7 / patch)) * patch for side, patch in zip(image_size, self.patch_size, strict=True)
        )
        self.crop_size: tuple[int, int] = crop_size or (height, width)
        if any(side % patch for side, patch in zip(self.crop_size, self.patch_size, strict=True)):
            msg = f"crop_size={self.crop_size} must be a multiple of the patch size {self.patch_size} of {backbone!r}."
            raise ValueError(msg)
        blocks = len(self.teacher.blocks)
        self.attention_block = blocks if attention_block is None else attention_block
        for name, number, lowest in (
            ("num_tuned_blocks", num_tuned_blocks, 0),
            ("distill_layers", distill_layers, 1),
            ("attention_block", self.attention_block, 1),
        ):
            if not lowest <= number <= blocks:
                msg = f"{name}={number}, but {backbone!r} has {blocks} blocks: give {lowest} to {blocks}."
                raise ValueError(msg)
        attends = vits.has_cls_attention(self.teacher, self.attention_block)
        if score == "attended_distance" and not attends:
            msg = f"score={score!r}, but {backbone!r} has no [CLS] token whose attention could be read: use 'distance'."
            raise ValueError(msg)
        self.masking: Masking = masking
        if masking == "guided" and not attends:
            logger.warning("%s has no [CLS] token whose attention could guide the mask: masking is random.", backbone)
            self.masking = "random"

        self.teacher.requires_grad_(False)
        for block in self.teacher.blocks[blocks - num_tuned_blocks :]:
            block.requires_grad_(True)
        self.head.requires_grad_(num_tuned_blocks > 0)
        self.reset_student()

    def whole(self, images: Tensor) -> Tensor:
        """What both stages see of images [B, 3, *resized_size]: all of each, [B, 3, *image_size].

        Raises:
            ValueError: If the images have another size.
        """
        check_views(images, self.image_size, self.boxes)
        return cut(images, self.boxes[0], self.image_size)

    @torch.no_grad()
    def reset_student(self) -> None:
        """Draw student, projection head and prototypes anew from torch's global random state."""
        vits.init_student(self.student)
        self.head.reset_parameters()
        for layer in self.student_heads:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def train(self, mode: bool = True) -> DefendModel:
        """The teacher stays in evaluation mode: no dropout changes what the student learns from it."""
        super().train(mode)
        self.teacher.eval()
        return self

    def dense_step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 1 (DEFEND): loss of eq. 1 for a batch of images [B, 3, H, W].

        Returns:
            The loss, and the perplexity of the prototypes' use (scalars).
        """
        images = self.whole(images)
        self.head.normalize_prototypes()
        # the view, and crops of it on the patch grid
        view = images
        if self.random_view:
            boxes = sample_boxes(len(images), self.image_size, VIEW_SCALE, device=images.device)
            view = crop_images(images, boxes, self.image_size)
        boxes = sample_boxes(len(images) * self.num_crops, self.grid, CROP_SCALE, device=images.device)
        crops = crop_images(view, boxes, self.crop_size, cell=self.patch_size)

        # targets: the assignment of the view's patches to prototypes, and of it what each crop covers
        targets, usage = self.dense_targets(view)
        targets = crop_targets(targets, boxes, self.crop_size)

        # predictions: the crop's embeddings, upsampled to the resolution of the comparison
        rows, columns = (side // patch for side, patch in zip(self.crop_size, self.patch_size, strict=True))
        embeddings = self.head(vits.patch_tokens(self.teacher, crops)[-1]).unflatten(1, (rows, columns))
        similarities = upsampled_similarity(embeddings, self.head.prototypes, self.crop_size)
        return dense_loss(similarities, targets), usage

    @torch.no_grad()
    def dense_targets(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Assign the patches of all views to prototypes.

        Returns:
            Labels [B, gh, gw] long, or soft assignments [B, gh, gw, K]; and the perplexity of the nearest prototypes.
        """
        scores = similarity(self.head(vits.patch_tokens(self.teacher, view)[-1]), self.head.prototypes)
        assignment = sinkhorn(scores.flatten(0, 1)).reshape(len(view), *self.grid, -1)
        nearest = scores.flatten(0, 1).argmax(-1)
        usage = perplexity(torch.bincount(nearest, minlength=scores.shape[-1]))
        return (assignment.argmax(-1) if self.hard_targets else assignment), usage

    @property
    def is_guided(self) -> bool:
        """Whether stage 2 reads the teacher's attention."""
        return self.masking == "guided" and self.mask_ratio > 0

    @property
    def teacher_shape(self) -> TeacherShape:
        """Numbers in ``teacher_output(attend=is_guided)`` of one image."""
        patches = self.grid[0] * self.grid[1]
        return TeacherShape(self.distill_layers, patches, self.teacher.embed_dim, attention=self.is_guided)

    @torch.no_grad()
    def teacher_output(self, images: Tensor, attend: bool = False) -> TeacherOutput:
        """One pass of the frozen teacher: features and, to guide a mask or weight the score, its [CLS] attention."""
        how: Any = {"num_layers": self.distill_layers, "final_norm": self.feature_norm != "layer_norm"}
        attention = None
        if attend:
            layers, attention = vits.patch_tokens_and_attention(
                self.teacher, images, attention_block=self.attention_block, **how
            )
        else:
            layers = vits.patch_tokens(self.teacher, images, **how)
        return TeacherOutput([normalize_features(tokens, self.feature_norm) for tokens in layers], attention)

    def student_layers(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """The student's comparable tokens S' of the last blocks, each [B, N or M, D]."""
        layers = vits.patch_tokens(
            self.student,
            images,
            keep=keep,
            num_layers=self.distill_layers,
            final_norm=self.feature_norm != "layer_norm",
        )
        layers = [head(tokens) for head, tokens in zip(self.student_heads, layers, strict=True)]
        return [normalize_features(tokens, "l2") for tokens in layers] if self.feature_norm == "l2" else layers

    def sample_keep(self, teacher: TeacherOutput) -> Tensor | None:
        """Indices of the patches that the student sees, [B, M]; ``None`` for all of them (eq. 2)."""
        tokens = teacher.layers[-1]
        if self.masking == "none" or self.mask_ratio == 0:
            return None
        weights = tokens.new_ones(tokens.shape[:2]) if teacher.attention is None else teacher.attention
        return sample_patches(weights, num_kept(tokens.shape[1], self.mask_ratio))

    def distill_step(self, images: Tensor, teacher: TeacherOutput | None = None) -> Tensor:
        """Stage 2 (MKD): loss of eq. 4.

        Args:
            images: [B, 3, H, W].
            teacher: What the teacher makes of them, if it is known already.
        """
        images = self.whole(images)
        teacher = teacher or self.teacher_output(images, attend=self.is_guided)
        keep = self.sample_keep(teacher)
        losses = []
        for student, target in zip(self.student_layers(images, keep), teacher.layers, strict=True):
            if keep is not None:
                target = target.gather(1, keep.unsqueeze(-1).expand(-1, -1, target.shape[-1]))  # noqa: PLW2901
            losses.append(feature_distance(student, target, self.distill_loss).mean() / target.shape[-1])
        return torch.stack(losses).mean()

    @torch.no_grad()
    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score (higher is more novel) and map, without masking.

        The score is the mean over patches of what the map shows: the distance of student and teacher or, for an
        attended distance, that distance times the patch's share in the teacher's attention, 1 in the mean. Of several
        views the smallest score counts, and at each pixel of the map the smallest distance.

        Args:
            images: [B, 3, H, W], resized to ``resized_size`` and normalised.

        Returns:
            ``pred_score`` [B] and ``anomaly_map`` [B, 1, H, W], not scaled.
        """
        check_views(images, self.image_size, self.boxes)
        views = (cut(images, box, self.image_size) for box in self.boxes)
        if torch.compiler.is_compiling():  # in an exported model the networks are there once, and see all views
            distances = self.distances(torch.cat(list(views))).unflatten(0, (len(self.boxes), -1))
        else:  # memory does not grow with the number of views
            distances = torch.stack([self.distances(view) for view in views])
        return InferenceBatch(
            pred_score=distances.mean(dim=2).amin(dim=0),
            anomaly_map=map_of_views(distances, self.boxes, self.grid, self.resized_size),
        )

    def distances(self, images: Tensor) -> Tensor:
        """What the map shows of each patch of images [B, 3, *image_size]: [B, N]."""
        teacher = self.teacher_output(images, attend=self.score == "attended_distance")
        distances = [
            feature_distance(student, target, self.distill_loss)
            for student, target in zip(self.student_layers(images), teacher.layers, strict=True)
        ]
        per_patch = torch.stack(distances).mean(dim=0)
        if teacher.attention is not None:
            per_patch = attended(per_patch, teacher.attention)
        return per_patch
