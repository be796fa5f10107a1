"""Models of what is normal in a space of image features, all with one face: `Normality`."""

from .base import Normality
from .center import Center
from .clusters import Clusters
from .gaussian import Gaussian
from .neighbors import NearestNeighbors

__all__ = ["Center", "Clusters", "Gaussian", "NearestNeighbors", "Normality"]
