"""A student for each block of a ViT, and the Gaussians of their errors and of the ViT's features.

Source: Cohen, Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR workshops 2022
(https://arxiv.org/abs/2112.04185).
Shapes: B images, N = gh gw patches, P prefix tokens, D channels, L blocks, E of whose errors are scored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from anomalib.data import InferenceBatch
from timm.layers import LayerScale
from torch import Tensor, nn

from anomalib_defend.nn.normality import Gaussian, Normality
from anomalib_defend.nn.resize import check_size
from anomalib_defend.nn.score import anomaly_map
from anomalib_defend.nn.vit import attention_for, create_vit, embed, pooled

Score = Literal["both", "errors", "features"]

UNSCORED = 2  # first blocks, whose errors take no part in the score
VARIANCE = 0.9  # of the features, in their principal components
BIAS_STD = 1e-6  # of a student's initial biases


class Look(NamedTuple):
    """What the blocks make of images."""

    errors: Tensor
    """Each scored block's mean squared error over tokens and channels, [B, E]."""
    features: Tensor
    """The teacher's [CLS] after the final norm, [B, D]."""
    patches: Tensor
    """Each scored block's mean squared error over the channels of each patch, [B, E, N]."""


class TransformalyModel(nn.Module):
    """A frozen teacher, a student for each of its blocks, and the density of the normal images.

    Args:
        backbone: Name of a timm ViT.
        image_size: Height and width of the input.
        score: The negative log density of the students' errors, of the teacher's features, or the sum of both.
        dropout: In training, of attention weights and behind every linear layer, in students and teacher.

    Raises:
        ValueError: If the encoder cannot be built.
    """

    def __init__(self, backbone: str, image_size: tuple[int, int], score: Score = "both", dropout: float = 0.0) -> None:
        super().__init__()
        self.image_size, self.dropout = image_size, dropout
        self.teacher = create_vit(backbone, image_size).requires_grad_(False)
        self.grid = self.teacher.patch_embed.grid_size
        self.students = copy.deepcopy(self.teacher.blocks).requires_grad_(True)
        for module in (*self.teacher.blocks.modules(), *self.students.modules()):
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.num_unscored = min(UNSCORED, len(self.students) - 1)
        self.normality = TwoGaussians(len(self.students) - self.num_unscored, self.teacher.num_features, score)
        self.reset_students()

    def train(self, mode: bool = True) -> TransformalyModel:
        """The teacher is in training mode with dropout alone."""
        super().train(mode)
        self.teacher.train(mode and self.dropout > 0)
        return self

    def reset_students(self) -> None:
        """Initialise the students anew: Xavier-uniform linear layers (queries, keys and values each of their own)."""
        for name, module in self.students.named_modules():
            if isinstance(module, nn.Linear):
                for part in module.weight.data.chunk(3 if name.endswith("qkv") else 1):
                    nn.init.xavier_uniform_(part)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=BIAS_STD)
            elif isinstance(module, LayerScale):
                nn.init.ones_(module.gamma)  # 1e-5, as for fine-tuning, would switch a fresh block off
            elif hasattr(module, "reset_parameters"):  # norms
                module.reset_parameters()

    def _blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each block the student's squared error and the teacher's output, both [B, P + N, D].

        A student sees what the teacher's block sees: no gradient goes from one block to another.

        Raises:
            ValueError: If the images have another size than the input.
        """
        check_size(images, self.image_size)
        with torch.no_grad():
            tokens = embed(self.teacher, images)
        for block, student in zip(self.teacher.blocks, self.students, strict=True):
            with torch.no_grad():
                target = block(tokens)
            yield (student(tokens).float() - target.float()).square(), target
            tokens = target

    def imitation_loss(self, images: Tensor) -> Tensor:
        """Mean squared error over blocks, tokens and channels, a scalar."""
        with attention_for(self, images.device):
            return torch.stack([error.mean() for error, _ in self._blocks(images)]).mean()

    @torch.no_grad()
    def look(self, images: Tensor) -> Look:
        """Errors and features of images [B, 3, H, W]."""
        errors, patches, tokens = [], [], images
        for index, (error, output) in enumerate(self._blocks(images)):
            tokens = output
            if index >= self.num_unscored:
                of_tokens = error.mean(dim=2)
                errors.append(of_tokens.mean(dim=1))
                patches.append(of_tokens[:, self.teacher.num_prefix_tokens :])
        features = pooled(self.teacher, tokens).float()
        return Look(torch.stack(errors, dim=1), features, torch.stack(patches, dim=1))

    def encode(self, images: Tensor) -> Tensor:
        """What the density is of: errors and features, [B, E + D]."""
        look = self.look(images)
        return torch.cat([look.errors, look.features], dim=1)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B], the negative log density, and anomaly map [B, 1, H, W], higher is more novel.

        The map is each patch's squared error, divided by the block's standard deviation over the normal images and
        summed over the blocks.
        """
        look = self.look(images)
        score = self.normality(torch.cat([look.errors, look.features], dim=1))
        patches = (look.patches / self.normality.deviation[:, None]).sum(dim=1)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map(patches, self.grid, self.image_size))


class TwoGaussians(Normality):
    """Two independent Gaussians, of the students' errors and of the principal components of the teacher's features.

    Args:
        num_errors: E.
        dim: D.
        score: Whose negative log density is the distance: the sum of both, or one.
    """

    deviation: Tensor

    def __init__(self, num_errors: int, dim: int, score: Score) -> None:
        super().__init__()
        self.num_errors, self.score = num_errors, score
        self.of_errors = Gaussian(num_errors)
        self.of_features = Gaussian(dim, VARIANCE)
        self.register_buffer("deviation", torch.ones(num_errors))  # of the errors, standard

    @property
    def fitted(self) -> bool:
        """Whether both are."""
        return self.of_errors.fitted and self.of_features.fitted

    def reset(self) -> None:
        """Forget the normal images."""
        self.of_errors.reset()
        self.of_features.reset()
        self.deviation.fill_(1)

    def fit(self, features: Tensor) -> None:
        """Fit both to errors and features [M, E + D]."""
        errors = features[:, : self.num_errors].double()
        self.of_errors.fit(errors)
        self.of_features.fit(features[:, self.num_errors :])
        self.deviation.copy_(errors.std(dim=0, correction=0).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Negative log density [B] of errors and features [B, E + D]."""
        errors, features = features[:, : self.num_errors], features[:, self.num_errors :]
        parts = []
        if self.score in {"both", "errors"}:
            parts.append(self.of_errors(errors))
        if self.score in {"both", "features"}:
            parts.append(self.of_features(features))
        return torch.stack(parts).sum(dim=0)
