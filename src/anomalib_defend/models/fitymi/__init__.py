"""Near-distribution fakes from an early-stopped diffusion model, and a classifier that learns them apart."""

from .lightning_model import Fitymi

__all__ = ["Fitymi"]
