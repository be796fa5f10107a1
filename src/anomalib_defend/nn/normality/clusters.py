"""Clusters of the normal images, and how far an image is from them.

Shapes: M normal images, B images, D channels, K clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Normality

SHRINKAGE = 0.75  # chosen with `measurements/prototypes.py`
IMAGES_PER_CLUSTER = 4  # at least


class Clusters(Normality):
    """k-means centres mu_k of the normal images, and a metric in which they lie about equally far from their own.

    The distance of an image is min_k ||W (x - mu_k)||^2 of its unit vector x (a Mahalanobis distance). W^T W is the
    inverse covariance within the clusters, shrunk towards a multiple of the identity, with unit scale.

    Args:
        dim: D.
        num_clusters: K at most: there are never more than a quarter of the images.
        shrinkage: Share of the identity in the covariance.
    """

    projection: Tensor
    centers: Tensor

    def __init__(self, dim: int, num_clusters: int = 1, shrinkage: float = SHRINKAGE) -> None:
        super().__init__()
        self.num_clusters, self.shrinkage = num_clusters, shrinkage
        self.register_buffer("projection", torch.zeros(dim, dim))  # W^T; 0 until they are found
        self.register_buffer("centers", torch.zeros(num_clusters, dim))  # W mu_k

    @property
    def fitted(self) -> bool:
        """Whether the clusters have been found."""
        return bool(self.projection.any())

    def reset(self) -> None:
        """Forget the clusters."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Find the clusters of the normal images' features [M, D]; the same ones for the same features."""
        from sklearn.cluster import KMeans  # noqa: PLC0415 - 30 ms at every start of the command line
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        x = F.normalize(features.double().cpu(), dim=-1)
        number = max(1, min(self.num_clusters, len(x) // IMAGES_PER_CLUSTER))
        with threadpool_limits(1):  # several threads add up in any order
            kmeans = KMeans(number, n_init=3, random_state=0).fit(x.numpy())
            centers, nearest = torch.from_numpy(kmeans.cluster_centers_), torch.from_numpy(kmeans.labels_).long()
            residuals = x - centers[nearest]
            covariance = residuals.T @ residuals / len(x)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance += self.shrinkage * variance * torch.eye(len(covariance))
        projection = torch.linalg.cholesky(torch.linalg.inv(covariance) * variance)
        self.projection.copy_(projection)
        self.centers = (centers @ projection).to(self.centers)

    def forward(self, features: Tensor) -> Tensor:
        """Distance [B] of images by their features [B, D] to the nearest cluster, higher is more novel."""
        with torch.autocast(features.device.type, enabled=False):
            x = F.normalize(features.float(), dim=-1) @ self.projection
            return (x.unsqueeze(1) - self.centers).square().sum(dim=-1).amin(dim=1)
