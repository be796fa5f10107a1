"""Prototypes of the normal images, and how far an image is from them.

Shapes: M normal images, B images, D channels, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# chosen with `anomalib_defend.benchmark.prototypes`
CONCENTRATION = 40.0
SHRINKAGE = 0.9


class NormalPrototypes(nn.Module):
    """A mixture of Gaussians around k-means centres mu_k, all with the same covariance.

    The energy of an image is -log sum_k pi_k exp(-kappa / 2 ||W (x - mu_k)||^2) of its unit vector x. W^T W is the
    inverse covariance within the clusters, shrunk towards a multiple of the identity, with unit scale: W is nearly
    the identity, and kappa plays the part that it has in a mixture of von Mises-Fisher distributions.

    Args:
        dim: D.
        num_prototypes: K.
        concentration: kappa.
        shrinkage: Share of the identity in the covariance.
    """

    projection: Tensor
    centers: Tensor
    log_weights: Tensor

    def __init__(
        self, dim: int, num_prototypes: int, concentration: float = CONCENTRATION, shrinkage: float = SHRINKAGE
    ) -> None:
        super().__init__()
        self.concentration, self.shrinkage = concentration, shrinkage
        self.register_buffer("projection", torch.zeros(dim, dim))  # W^T; 0 until they are found
        self.register_buffer("centers", torch.zeros(num_prototypes, dim))  # W mu_k
        self.register_buffer("log_weights", torch.zeros(num_prototypes))  # log pi_k

    @property
    def fitted(self) -> bool:
        """Whether the prototypes have been found."""
        return bool(self.projection.any())

    def reset(self) -> None:
        """Forget the prototypes."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Find the prototypes of the normal images' features [M, D], M >= K; the same ones for the same features."""
        from sklearn.cluster import KMeans  # noqa: PLC0415 - 30 ms at every start of the command line
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        x = F.normalize(features.double().cpu(), dim=-1)
        with threadpool_limits(1):  # several threads add up in any order
            kmeans = KMeans(len(self.centers), n_init=3, random_state=0).fit(x.numpy())
        centers, nearest = torch.from_numpy(kmeans.cluster_centers_), torch.from_numpy(kmeans.labels_).long()
        residuals = x - centers[nearest]
        covariance = residuals.T @ residuals / len(x)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance += self.shrinkage * variance * torch.eye(len(covariance))
        projection = torch.linalg.cholesky(torch.linalg.inv(covariance) * variance)
        # where images are copies of each other k-means leaves clusters empty, whose weight has to stay finite
        counts = torch.bincount(nearest, minlength=len(centers)).clamp_min(1e-12)
        self.projection.copy_(projection)
        self.centers.copy_(centers @ projection)
        self.log_weights.copy_((counts / len(x)).log())

    def forward(self, features: Tensor) -> Tensor:
        """Energy [B] of images by their features [B, D], higher is more novel."""
        with torch.autocast(features.device.type, enabled=False):
            x = F.normalize(features.float(), dim=-1) @ self.projection
            distances = (x.unsqueeze(1) - self.centers).square().sum(dim=-1)
            return -torch.logsumexp(self.log_weights - self.concentration / 2 * distances, dim=1)
