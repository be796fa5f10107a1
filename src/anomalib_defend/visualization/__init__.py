"""One picture an image: image and heat map with score, threshold and verdict, under a name of its own."""

from .names import picture_name
from .visualizer import NoveltyVisualizer

__all__ = ["NoveltyVisualizer", "picture_name"]
