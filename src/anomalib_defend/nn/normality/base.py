"""The face that all models of the normal images' features have.

Shapes: M normal images, B images, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Normality(nn.Module, ABC):
    """What is normal, by the features of normal images: ``fit`` once, then ``forward`` gives distances from it.

    All that is fitted lies in buffers, whose sizes may follow from the features; a state of any size is loaded.
    """

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether there was a ``fit`` since the start or the last ``reset``."""

    @abstractmethod
    def fit(self, features: Tensor) -> None:
        """Take the features [M, D] of the normal images in; the same ones give the same result."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the normal images."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Distance [B] of images by their features [B, D] from the normal ones, higher is more novel."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(f"{prefix}{name}")
            if isinstance(saved, Tensor) and saved.shape != buffer.shape:
                setattr(self, name, saved.new_empty(saved.shape, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
