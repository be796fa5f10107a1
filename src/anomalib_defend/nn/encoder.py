"""Any timm encoder, with the input that it was pretrained for."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

import timm
import torch
from torch import nn


class DataConfig(NamedTuple):
    """The input that an encoder was pretrained with."""

    image_size: tuple[int, int]
    """Height and width."""
    mean: tuple[float, float, float]
    """Of each channel, for images in [0, 1]."""
    std: tuple[float, float, float]
    """Of each channel, for images in [0, 1]."""


def data_config(backbone: str) -> DataConfig:
    """Input size and normalisation of a timm encoder, without building it.

    Raises:
        ValueError: If timm does not know the name.
    """
    name, _, tag = backbone.partition(".")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        models = timm.list_models()
        known = timm.list_models(f"{name}*") or get_close_matches(name, models, 8) or timm.list_models("vit_*")
        msg = f"backbone={backbone!r} is not a timm model. Similar names: {', '.join(known[:8])}."
        raise ValueError(msg)
    if tag:
        try:
            config = timm.get_pretrained_cfg(backbone)
        except RuntimeError as error:
            msg = f"backbone={backbone!r}: timm has no pretrained tag {tag!r} for {name!r}."
            raise ValueError(msg) from error
    height, width = config.input_size[-2:]
    red, green, blue = config.mean
    stds = config.std
    return DataConfig((height, width), (red, green, blue), (stds[0], stds[1], stds[2]))


def create_encoder(backbone: str, image_size: tuple[int, int]) -> nn.Module:
    """Build a timm encoder without classifier, randomly initialised.

    Its convolutions have their channels last in memory, and so have the maps between them: that takes less time on a
    CPU, and on a GPU in half precision.

    Args:
        backbone: Name of a timm model.
        image_size: Height and width of the input.

    Raises:
        ValueError: If timm does not know the name, or cannot build it for this size.
    """
    native = data_config(backbone).image_size
    kwargs = {} if image_size == native else {"img_size": image_size}
    try:
        encoder = timm.create_model(backbone, num_classes=0, **kwargs)
    except TypeError:  # convolutional encoders take images of any size
        encoder = timm.create_model(backbone, num_classes=0)
    except AssertionError as error:
        msg = f"backbone={backbone!r} cannot be built for image_size={image_size}: {error}"
        raise ValueError(msg) from error
    return encoder.to(memory_format=torch.channels_last)
