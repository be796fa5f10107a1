"""Projection head and dense prototypes of stage 1 of `Defend`, which patches are assigned to.

Shapes: d = 256 embedding channels, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBED_DIM = 256
HIDDEN_DIM = 2048

CANCELLED = 1e-6  # share of neighbours' squared lengths below which what is left of them half-way is rounding


class PrototypeHead(nn.Module):
    """The projection head h and the dense prototypes C in R^{K x d} (sec. 3.1).

    Args:
        dim: Channels D of the patch tokens.
        num_prototypes: K.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, HIDDEN_DIM),
            nn.GELU(),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
            nn.GELU(),
            nn.Linear(HIDDEN_DIM, EMBED_DIM),
        )
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, EMBED_DIM))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the head as torch does and the prototypes from N(0, I)."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        nn.init.normal_(self.prototypes)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Put the prototypes back on the unit sphere, in place, before a forward pass."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens: [..., D] -> [..., d], not normalised."""
        return self.mlp(tokens)


def similarity(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """S = norm(z) C^T: [..., d] and [K, d] -> [..., K] float32."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return F.normalize(embeddings.float(), dim=-1) @ prototypes.float().T


def upsampled_similarity(embeddings: Tensor, prototypes: Tensor, size: tuple[int, int]) -> Tensor:
    """Similarity to the prototypes after bilinear upsampling of the embeddings and normalisation per position.

    Exactly ``norm(upsample(z)) C^T``, without ever forming the upsampled embeddings (d channels at every position):
    upsampling is linear, so the dot products can be upsampled instead, and the squared length of an interpolated
    embedding is a fixed mix of the inner products of neighbouring embeddings.

    Args:
        embeddings: z on its token grid, [M, gh, gw, d].
        prototypes: C, [K, d].
        size: Resolution (height, width) to upsample to.

    Returns:
        [M, height, width, K] float32; in memory positions follow each other, which keeps wide registers busy.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.float()
        _, gh, gw, _ = z.shape
        # row i: how much token i weighs at each position
        weights = torch.eye(gh * gw, device=z.device).reshape(-1, 1, gh, gw)
        weights = F.interpolate(weights, size=size, mode="bilinear").flatten(1)
        i, j = (weights @ weights.T).triu().nonzero(as_tuple=True)  # the pairs that ever meet: neighbours
        mix = weights[i] * weights[j] * torch.where(i == j, 1.0, 2.0)[:, None]
        tokens = z.flatten(1, 2)
        dots = (prototypes.float() @ tokens.mT) @ weights
        inner = tokens @ tokens.mT
        squared = inner[:, i, j] @ mix
        # opposite neighbours cancel: what is left is rounding, and must not become a direction
        rounding = CANCELLED * (inner.diagonal(dim1=1, dim2=2) @ weights.square())
        length = torch.maximum(squared, rounding).clamp_min(1e-12).sqrt()
        return (dots / length.unsqueeze(1)).unflatten(2, size).movedim(1, -1)
