"""The plugin's models; importing this package also makes them known to anomalib by their bare names."""

from anomalib_defend._autoload import register_models

from .defend import Defend

__all__ = ["Defend"]

register_models()
