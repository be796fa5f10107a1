"""Prototypes of the normal object, looked for in several views of an image."""

from .lightning_model import ObjectPrototypes

__all__ = ["ObjectPrototypes"]
