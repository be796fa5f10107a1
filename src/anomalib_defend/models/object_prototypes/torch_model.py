"""Frozen encoder, and the distance of an image and its best view to the normal images.

Shapes: B images, V views, D channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.encoder import create_encoder
from anomalib_defend.nn.normality import Clusters, NearestNeighbors, Normality
from anomalib_defend.nn.views import LAYOUTS, Box, Views, check_views, cut, distance_map

Head = Literal["prototypes", "neighbors"]


class ObjectPrototypesModel(nn.Module):
    """Distances of an image's views to the whole normal images; the score is the mean of the whole's and the smallest.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width at which the encoder sees each view.
        views: Layout of the views.
        head: Compare with ``prototypes`` of the normal images, or with the nearest of them (``neighbors``).
        num_prototypes: K at most.
        num_neighbors: k.

    Raises:
        ValueError: If the encoder cannot be built.
    """

    encoder: Any  # timm's methods are not those of every module
    view_boxes: Tensor

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        views: Views = "whole+centre",
        head: Head = "prototypes",
        num_prototypes: int = 5,
        num_neighbors: int = 2,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.encoder = create_encoder(backbone, image_size).eval().requires_grad_(False)
        dim = self.encoder.head_hidden_size
        self.normality: Normality = (
            Clusters(dim, num_prototypes) if head == "prototypes" else NearestNeighbors(dim, num_neighbors, center=True)
        )
        self.boxes: tuple[Box, ...] = LAYOUTS[views]
        self.register_buffer("view_boxes", torch.tensor(self.boxes))  # a checkpoint says what it was calibrated with

    def train(self, mode: bool = True) -> ObjectPrototypesModel:
        """The encoder is frozen: its dropout and batch norms never switch to training."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, views: Tensor) -> Tensor:
        """Unit vectors [B, D], float32, of views [B, 3, *image_size]: a ViT's [CLS], or a CNN's pooled features."""
        features = self.encoder.forward_head(self.encoder.forward_features(views), pre_logits=True)
        return F.normalize(features.float(), dim=-1)

    def encode(self, images: Tensor) -> Tensor:
        """What stands for a normal image: features [B, D] of the whole of images [B, 3, H, W].

        Raises:
            ValueError: If the images are too small for the views.
        """
        check_views(images, self.image_size, self.boxes, or_larger=True)
        return self.features(cut(images, self.boxes[0], self.image_size))

    def distances(self, images: Tensor) -> Tensor:
        """Distance of each view of images [B, 3, H, W] to the normal images, [B, V].

        The encoder sees one view of all images at a time: memory does not grow with the number of views. In an exported
        model it is there once, and sees all views in one batch.

        Raises:
            ValueError: If a view would have to be enlarged. (Larger images pass: the first view of several, as a
                model of its own, sees those that the others need.)
        """
        check_views(images, self.image_size, self.boxes, or_larger=True)
        views = (cut(images, box, self.image_size) for box in self.boxes)
        if torch.compiler.is_compiling():
            return self.normality(self.features(torch.cat(list(views)))).reshape(len(self.boxes), -1).T
        return torch.stack([self.normality(self.features(view)) for view in views], dim=1)

    @staticmethod
    def scores(distances: Tensor) -> Tensor:
        """Each view's score from the distances, both [B, V]: the mean of its distance and the whole image's.

        The whole image comes first. Its own score is its distance, and no further view raises the smallest of the
        scores. That the whole image counts as much as the best view was chosen off the tables (docs/benchmarks.md,
        "The layout of the views").
        """
        return (distances + distances[:, :1]) / 2

    def predictions(self, distances: Tensor, size: tuple[int, int]) -> InferenceBatch:
        """Scores, those of the best views, and maps of ``size`` (height, width) from the views' distances [B, V]."""
        scores = self.scores(distances)
        return InferenceBatch(pred_score=scores.amin(dim=1), anomaly_map=distance_map(scores, self.boxes, size))

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score (higher is more novel) and map of the views' scores.

        Args:
            images: [B, 3, H, W], normalised and large enough for the smallest view.

        Returns:
            ``pred_score`` [B] and ``anomaly_map`` [B, 1, H, W], not scaled.
        """
        return self.predictions(self.distances(images), (images.shape[-2], images.shape[-1]))
