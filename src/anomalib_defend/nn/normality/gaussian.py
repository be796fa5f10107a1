"""A Gaussian of the normal images' features, and how improbable an image is under it.

Shapes: M normal images, B images, D channels, K directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Normality

RIDGE = 1e-6  # on the diagonal of the covariance
LEAST_VARIANCE = 1e-12  # of a direction that is divided by its own


class Gaussian(Normality):
    """Negative log density of a Gaussian that has the mean and the covariance (1/M, plus a ridge of 1e-6) of features.

    Args:
        dim: D.
        variance: Fit it to the whitened principal components, as many as hold at most this share of the variance, at
            least one. To the features as they are if ``None``.
    """

    mean: Tensor
    whitening: Tensor
    constant: Tensor

    def __init__(self, dim: int, variance: float | None = None) -> None:
        super().__init__()
        self.variance = variance
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.zeros(dim, dim if variance is None else 1))  # W; 0 until it is fitted
        self.register_buffer("constant", torch.zeros(()))

    @property
    def fitted(self) -> bool:
        """Whether there is a covariance."""
        return bool(self.whitening.any())

    def reset(self) -> None:
        """Forget the normal images."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take mean and covariance of the normal images' features [M, D], in float64.

        Raises:
            ValueError: If the features are not finite.
        """
        x = features.double().cpu()
        if not x.isfinite().all():
            msg = "The normal images' features hold NaN or infinity: there is no Gaussian of them."
            raise ValueError(msg)
        mean = x.mean(dim=0)
        centred = x - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(x))
        variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)
        directions = directions * directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
        if self.variance is None:
            variances = variances + RIDGE
            log_determinant = variances.log().sum()
        else:
            kept = max(1, int((variances.cumsum(0) <= self.variance * variances.sum()).sum()))
            directions = directions[:, :kept]
            variances = variances[:kept].clamp_min(LEAST_VARIANCE) * (1 + RIDGE)  # 1 + ridge: of whitened components
            log_determinant = torch.tensor(kept * math.log1p(RIDGE))
        self.mean.copy_(mean)
        self.whitening = (directions / variances.sqrt()).to(self.whitening).contiguous()  # as a loaded one is
        self.constant.copy_((log_determinant + len(variances) * math.log(2 * math.pi)) / 2)

    def forward(self, features: Tensor) -> Tensor:
        """Negative log density [B] of features [B, D], higher is more novel."""
        with torch.autocast(features.device.type, enabled=False):
            whitened = (features.float() - self.mean) @ self.whitening
            return whitened.square().sum(dim=1) / 2 + self.constant
