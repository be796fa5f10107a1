"""A timm VGG up to its last pooling, and a slim copy of it.

Shapes: B images, C_k channels and (H / 2^k, W / 2^k) pixels behind pooling k = 1 .. 5.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from timm.models.vgg import VGG
from torch import Tensor, nn

from .encoder import data_config

STRIDE = 32  # of all five poolings
HIDDEN_CHANNELS = 16


def create_vgg(backbone: str, image_size: tuple[int, int]) -> VGG:
    """Build a timm VGG without anything behind its last pooling, randomly initialised, its channels last in memory.

    Args:
        backbone: Name of the model, with batch norms or without.
        image_size: Height and width of the input.

    Raises:
        ValueError: If the name is no VGG, or nothing is left of such an image behind the last pooling.
    """
    data_config(backbone)  # a wrong name is named as such
    with torch.device("meta"):  # the fully connected layers are most of it
        vgg = timm.create_model(backbone, num_classes=0)
    if not isinstance(vgg, VGG):
        msg = f"backbone={backbone!r} is a {type(vgg).__name__}, no VGG (vgg11, vgg16, vgg16_bn ...)."
        raise ValueError(msg)
    if min(image_size) < STRIDE:
        msg = f"image_size={image_size} must be at least {STRIDE} x {STRIDE}: {backbone!r} halves it five times."
        raise ValueError(msg)
    vgg.pre_logits = vgg.head = nn.Identity()
    device = torch.get_default_device()
    if device.type != "meta":  # else the caller wants no values
        vgg.to_empty(device=device)
        init_convolutions(vgg, nn.init.kaiming_normal_)
    return vgg.to(memory_format=torch.channels_last)


def slim_copy(vgg: VGG) -> nn.Sequential:
    """A network with outputs of the same shapes behind poolings 2 to 5, but narrow in between, randomly initialised.

    All convolutions have 16 channels but the last of each block, which has those of the VGG's block; the first block
    is narrow throughout. No biases; a batch norm and a ReLU behind each convolution, behind the last of a block a ReLU
    alone.
    """
    layers: list[nn.Module] = []
    channels = 3
    for number, widths in enumerate(_blocks(vgg)):
        last = HIDDEN_CHANNELS if number == 0 else widths[-1]
        for width in [HIDDEN_CHANNELS] * (len(widths) - 1):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers += [nn.Conv2d(channels, last, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
        channels = last
    copy = nn.Sequential(*layers)
    init_convolutions(copy, nn.init.xavier_uniform_)
    return copy


def pool_outputs(layers: nn.Module, images: Tensor) -> list[Tensor]:
    """What follows each pooling: of images [B, 3, H, W], five tensors [B, C_k, H / 2^k, W / 2^k], rounded down."""
    outputs = []
    for layer in layers.children():
        images = layer(images)
        if isinstance(layer, nn.MaxPool2d):
            outputs.append(images)
    return outputs


def pool_shapes(vgg: VGG, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Channels, height and width behind each pooling."""
    height, width = image_size
    return [(widths[-1], height >> number, width >> number) for number, widths in enumerate(_blocks(vgg), start=1)]


def init_convolutions(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draw the weights of convolutions; biases are 0, batch norms as if they were new."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def _blocks(vgg: VGG) -> list[list[int]]:
    """Channels of the convolutions before each pooling."""
    blocks: list[list[int]] = [[]]
    for layer in vgg.features:
        if isinstance(layer, nn.MaxPool2d):
            blocks.append([])
        elif isinstance(layer, nn.Conv2d):
            blocks[-1].append(layer.out_channels)
    return blocks[:-1]
